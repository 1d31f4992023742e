import numpy as np
import pytest

from core.jobs import JobOptions
from core.ledger import ClaimedShard
from core.sharding import Input, Span
from worker.engines import Tokens
from worker.work import Work


def work(*, count: int = 3, **options: object) -> Work:
    inputs = tuple(Input(f"text {n}", f"id{n}") for n in range(count))
    return Work(ClaimedShard("job", Span(10, count), 1, "m", "alice", JobOptions(**options), inputs), dimensions=4)  # type: ignore[arg-type]


VECTORS = np.array([[3, 4, 0, 0], [0, 0, 0, 2], [1, 1, 1, 1]], dtype=np.float32)


def test_vectors_go_to_their_positions_whatever_the_batch_order() -> None:
    done = work()
    done.succeed([2, 0], VECTORS[[2, 0]])
    assert done.missing == 1
    done.succeed([1], VECTORS[[1]])
    assert done.missing == 0
    np.testing.assert_allclose(done.vectors, [[0.6, 0.8, 0, 0], [0, 0, 0, 1], [0.5, 0.5, 0.5, 0.5]])


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"normalize": False}, [3, 4, 0, 0]),
        ({"normalize": False, "dimensions": 1}, [3]),
        ({"normalize": True, "dimensions": 1}, [1]),
    ],
)
def test_dimensions_are_cut_before_the_length_is_made_one(options: dict[str, object], first: list[float]) -> None:
    done = work(**options)
    done.succeed([0, 1, 2], VECTORS)
    np.testing.assert_allclose(done.vectors[0], first)


def test_vector_of_zeros_stays_zero() -> None:
    done = work(count=1)
    done.succeed([0], np.zeros((1, 4), dtype=np.float32))
    assert (done.missing, done.errors, done.vectors.tolist()) == (0, {}, [[0, 0, 0, 0]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vector_that_is_not_finite_fails_alone(bad: float) -> None:
    done = work()
    vectors = VECTORS.copy()
    vectors[1, 0] = bad
    done.succeed([0, 1, 2], vectors)
    assert done.missing == 0
    assert (done.errors[1].index, done.errors[1].code) == (11, "not_finite")
    assert np.isnan(done.vectors[1]).all()
    assert np.isfinite(done.vectors[[0, 2]]).all()
    result = done.committed().result
    assert (result.ids, list(result.errors)) == (("id0", "id1", "id2"), [1])


def chunk(weight: int) -> Tokens:
    return Tokens(range(weight + 2), False, weight=weight)


def test_chunks_give_one_vector_whatever_the_batch_order() -> None:
    done = work(count=2)
    long = done.take_up(0, [chunk(6), chunk(2)])
    short = done.take_up(1, [Tokens(range(5), False)])
    done.take([long[1], short[0]], VECTORS[[1, 2]])
    assert done.missing == 1
    done.take([long[0]], VECTORS[[0]])
    mean = (6 * VECTORS[0] + 2 * VECTORS[1]) / 8
    np.testing.assert_allclose(done.vectors[0], mean / np.linalg.norm(mean), rtol=1e-6)
    result = done.committed().result
    assert (done.missing, result.tokens, result.chunks, result.truncated) == (0, (12, 5), {0: 2}, frozenset())


def test_input_fails_once_with_its_first_chunk_that_fails() -> None:
    done = work(count=2)
    first, second, third = done.take_up(0, [chunk(2), chunk(2), chunk(2)])
    done.take([first], VECTORS[[0]])
    done.fail(0, "embedding_failed", "the model raised RuntimeError")
    done.fail(0, "out_of_memory", "the device is full", retryable=True)
    assert third.failed
    done.take([second, third], VECTORS[[1, 2]])
    assert (done.missing, done.errors[0].code) == (1, "embedding_failed")
    assert np.isnan(done.vectors[0]).all()


def test_chunk_that_is_not_finite_fails_its_input() -> None:
    done = work(count=1)
    done.take(done.take_up(0, [chunk(2), chunk(1)]), np.array([[np.nan] * 4, [1] * 4], dtype=np.float32))
    assert (done.missing, done.errors[0].code) == (0, "not_finite")

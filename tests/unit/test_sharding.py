from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.sharding import Input, Shard, Span, covering, cut

inputs_lists = st.lists(st.builds(Input, st.text(max_size=12), st.none() | st.text(max_size=3)), max_size=40)
limits = st.integers(1, 12)


def counts(shards: list[Shard]) -> list[int]:
    return [shard.span.count for shard in shards]


def of_lengths(*lengths: int) -> list[Input]:
    return [Input("x" * length) for length in lengths]


@pytest.mark.parametrize(
    ("lengths", "max_inputs", "max_characters", "expected"),
    [
        ((), 3, 10, []),
        ((1,), 3, 10, [1]),
        ((1,) * 7, 3, 10, [3, 3, 1]),
        ((1,) * 6, 3, 10, [3, 3]),
        ((5, 5, 5), 3, 10, [2, 1]),
        ((5, 6, 5), 3, 10, [1, 1, 1]),
        ((11, 1, 1), 3, 10, [1, 2]),
        ((1, 11, 1), 3, 10, [1, 1, 1]),
        ((99, 99), 3, 10, [1, 1]),
        ((0, 0, 0, 0), 3, 1, [3, 1]),
    ],
)
def test_shard_ends_before_it_would_pass_a_limit(
    lengths: tuple[int, ...], max_inputs: int, max_characters: int, expected: list[int]
) -> None:
    assert counts(list(cut(of_lengths(*lengths), max_inputs=max_inputs, max_characters=max_characters))) == expected


@given(inputs_lists, limits, limits)
def test_cut_loses_nothing_and_keeps_order(inputs: list[Input], max_inputs: int, max_characters: int) -> None:
    shards = list(cut(inputs, max_inputs=max_inputs, max_characters=max_characters))
    assert [item for shard in shards for item in shard.inputs] == inputs
    position = 0
    for shard in shards:
        assert shard.span == Span(position, len(shard.inputs))
        position = shard.span.end


@given(inputs_lists, limits, limits)
def test_shard_never_passes_a_limit_but_by_a_single_text(inputs: list[Input], max_inputs: int, max_characters: int) -> None:
    for shard in cut(inputs, max_inputs=max_inputs, max_characters=max_characters):
        assert 1 <= shard.span.count <= max_inputs
        assert shard.span.count == 1 or sum(len(item.text) for item in shard.inputs) <= max_characters


@given(inputs_lists, limits, limits)
def test_shard_takes_every_input_that_fits(inputs: list[Input], max_inputs: int, max_characters: int) -> None:
    shards = list(cut(inputs, max_inputs=max_inputs, max_characters=max_characters))
    for shard, following in pairwise(shards):
        characters = sum(len(item.text) for item in (*shard.inputs, following.inputs[0]))
        assert shard.span.count == max_inputs or characters > max_characters


def test_cut_reads_no_further_than_one_input_past_the_shard_it_gives() -> None:
    read = 0

    def endless() -> Iterator[Input]:
        nonlocal read
        while True:
            read += 1
            yield Input("x")

    shards = cut(endless(), max_inputs=3, max_characters=100)
    assert read == 0
    for n in range(1, 4):
        assert next(shards).span == Span(3 * (n - 1), 3)
        assert read == 3 * n + 1


@given(st.integers(0, 10**9), st.integers(1, 10**9))
def test_span_reads_back_from_its_name(first: int, count: int) -> None:
    span = Span(first, count)
    assert Span.parse(str(span)) == span
    assert span.end == first + count


def test_spans_sort_by_number_not_by_name() -> None:
    assert sorted(map(Span.parse, ["10+5", "9+1", "100+1", "0+9"])) == list(map(Span.parse, ["0+9", "9+1", "10+5", "100+1"]))


@pytest.mark.parametrize(
    ("offset", "end", "expected"),
    [
        (0, 10, ["0+4", "4+4", "8+2"]),
        (0, 4, ["0+4"]),
        (0, 5, ["0+4", "4+4"]),
        (3, 5, ["0+4", "4+4"]),
        (4, 8, ["4+4"]),
        (9, 10, ["8+2"]),
        (9, 99, ["8+2"]),  # 10 to 12 are missing
        (10, 12, []),
        (12, 99, ["12+3"]),
        (15, 20, []),
        (5, 5, []),
        (5, 3, []),
    ],
)
def test_covering_spans_stop_at_the_first_gap(offset: int, end: int, expected: list[str]) -> None:
    spans = map(Span.parse, ["12+3", "4+4", "0+4", "8+2"])
    assert [str(span) for span in covering(spans, offset, end)] == expected


@given(st.lists(st.integers(1, 5), max_size=12), st.data())
def test_covering_reaches_as_far_as_the_finished_inputs_do(sizes: list[int], data: st.DataObject) -> None:
    spans, first = [], 0
    for size in sizes:
        spans.append(Span(first, size))
        first += size
    finished = data.draw(st.permutations([span for span in spans if data.draw(st.booleans())]))
    offset = data.draw(st.integers(0, first))
    end = data.draw(st.integers(offset, first + 3))
    held = {index for span in finished for index in range(span.first, span.end)}
    reached = offset
    while reached < end and reached in held:
        reached += 1
    chosen = covering(finished, offset, end)
    covered = [index for span in chosen for index in range(span.first, span.end) if offset <= index < end]
    assert covered == list(range(offset, reached))
    assert all(span.first < end and span.end > offset for span in chosen)

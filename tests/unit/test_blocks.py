import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.blocks import (
    VERSION,
    Reference,
    ResultBlock,
    pack_inputs,
    pack_reference,
    pack_result,
    unpack_inputs,
    unpack_result,
    unpack_stored,
)
from core.errors import VectorApiError
from core.jobs import InputError
from core.sharding import Input

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
ids = st.none() | texts


@st.composite
def results(draw: st.DrawFn) -> ResultBlock:
    count, dimensions = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    positions = st.integers(0, count - 1)
    errors = st.builds(InputError, st.integers(0, 10**6), texts, texts, st.booleans())
    numbers = draw(st.lists(st.floats(width=32), min_size=count * dimensions, max_size=count * dimensions))
    return ResultBlock(
        dimensions=dimensions,
        vectors=struct.pack(f"<{count * dimensions}f", *numbers),
        tokens=tuple(draw(st.lists(st.integers(0, 10**6), min_size=count, max_size=count))),
        truncated=frozenset(draw(st.sets(positions))),
        errors=draw(st.dictionaries(positions, errors)),
        ids=draw(st.none() | st.tuples(*[ids] * count)),
        chunks=draw(st.dictionaries(positions, st.integers(2, 10**6))),
    )


@given(st.lists(st.builds(Input, texts, ids), max_size=8))
def test_inputs_read_back(inputs: list[Input]) -> None:
    assert unpack_inputs(pack_inputs(inputs)) == tuple(inputs)


@given(results())
def test_results_read_back_to_the_bit(result: ResultBlock) -> None:
    assert unpack_result(pack_result(result)) == result


def test_block_without_chunks_is_as_it_was_before_there_were_any() -> None:
    packed = pack_result(ResultBlock(dimensions=1, vectors=bytes(4), tokens=(4,)))
    assert set(msgpack.unpackb(packed)) == {"v", "dimensions", "vectors", "tokens", "truncated", "errors", "ids"}


def test_ids_take_no_room_where_there_are_none() -> None:
    assert msgpack.unpackb(pack_inputs([Input("a"), Input("b")]))["ids"] is None
    assert msgpack.unpackb(pack_inputs([Input("a"), Input("b", "2")]))["ids"] == [None, "2"]


def test_vectors_lie_in_a_block_as_they_are() -> None:
    vectors = struct.pack("<3f", 0.25, float("nan"), -1)
    assert vectors in pack_result(ResultBlock(dimensions=3, vectors=vectors, tokens=(4,)))


@pytest.mark.parametrize("version", [0, VERSION + 1])
def test_block_of_another_version_is_refused(version: int) -> None:
    with pytest.raises(VectorApiError, match=f"version {version} .* reads version {VERSION}"):
        unpack_inputs(msgpack.packb({"v": version}))
    with pytest.raises(VectorApiError, match=f"version {version}"):
        unpack_result(msgpack.packb({"v": version}))


def test_reference_stands_for_one_block_only() -> None:
    reference = Reference.to("job/0+1.1.a", b"vectors")
    assert unpack_stored(pack_reference(reference)) == reference
    assert reference.fits(b"vectors")
    assert not reference.fits(b"vector")
    assert not reference.fits(b"Vectors")


def test_stored_is_a_result_or_a_reference_to_one() -> None:
    result = ResultBlock(dimensions=1, vectors=b"\0\0\0\0", tokens=(1,))
    assert unpack_stored(pack_result(result)) == result
    with pytest.raises(VectorApiError, match="version 2"):
        unpack_result(pack_reference(Reference("job/0+1.1.a", 1, 1)))

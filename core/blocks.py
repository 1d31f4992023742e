"""How shards lie in Redis: msgpack maps around raw bytes, readable by any language and without a copy per number.

An input block holds the texts of a shard, a result block its vectors; a reference stands for a result block that lies in the
result store. All are versioned by their `v`.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import msgpack

from core.errors import UnreadableBlock
from core.jobs import InputError
from core.sharding import Input

VERSION = 1
REFERENCE_VERSION = 2


@dataclass(frozen=True)
class ResultBlock:
    """What a worker found for one shard of n inputs.

    `vectors` are float32, little-endian, (n, dimensions) in input order; the row of a failed input is NaN. `tokens` counts each
    input's tokens as embedded. `truncated` and the keys of `errors` and `chunks` are positions in the shard; `chunks` has the
    inputs that were embedded in more than one, and in how many.
    """

    dimensions: int
    vectors: bytes
    tokens: tuple[int, ...]
    truncated: frozenset[int] = frozenset()
    errors: dict[int, InputError] = field(default_factory=dict)
    ids: tuple[str | None, ...] | None = None
    chunks: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """Where a result block lies in the result store, and how to tell that it is whole."""

    key: str
    size_bytes: int
    crc32: int

    @classmethod
    def to(cls, key: str, block: bytes) -> Self:
        return cls(key, len(block), zlib.crc32(block))

    def fits(self, block: bytes) -> bool:
        return len(block) == self.size_bytes and zlib.crc32(block) == self.crc32


def pack_inputs(inputs: Sequence[Input]) -> bytes:
    """The input block of a shard."""
    ids = [item.id for item in inputs]
    return _pack({"texts": [item.text for item in inputs], "ids": ids if any(given is not None for given in ids) else None})


def unpack_inputs(block: bytes) -> tuple[Input, ...]:
    """The inputs of a block, in order.

    Raises:
        UnreadableBlock: another version wrote it, or it is damaged.
    """
    found = _unpack(block)
    try:
        texts, ids = found["texts"], found["ids"]
        return tuple(Input(text, ids[n] if ids else None) for n, text in enumerate(texts))
    except (KeyError, IndexError, TypeError) as error:
        raise UnreadableBlock("a block in Redis is not a shard's inputs") from error


def pack_result(result: ResultBlock) -> bytes:
    """The result block of a shard."""
    return _pack(
        {
            "dimensions": result.dimensions,
            "vectors": result.vectors,
            "tokens": result.tokens,
            "truncated": sorted(result.truncated),
            "errors": [[n, e.index, e.code, e.message, e.retryable] for n, e in sorted(result.errors.items())],
            "ids": result.ids,
        }
        | ({"chunks": sorted(result.chunks.items())} if result.chunks else {})  # older readers pass over it
    )


def pack_reference(reference: Reference) -> bytes:
    """What stands in Redis for a block that lies elsewhere."""
    packed: bytes = msgpack.packb({"v": REFERENCE_VERSION, **vars(reference)})
    return packed


def unpack_result(block: bytes) -> ResultBlock:
    """What `pack_result` was given."""
    return _result(_unpack(block))


def unpack_stored(block: bytes) -> ResultBlock | Reference:
    """What `pack_result` or `pack_reference` was given."""
    found = _unpack(block, VERSION, REFERENCE_VERSION)
    if found.pop("v") == REFERENCE_VERSION:
        return Reference(**found)
    return _result(found)


def _result(found: dict[str, Any]) -> ResultBlock:
    return ResultBlock(
        dimensions=found["dimensions"],
        vectors=found["vectors"],
        tokens=tuple(found["tokens"]),
        truncated=frozenset(found["truncated"]),
        errors={n: InputError(index, code, message, retryable) for n, index, code, message, retryable in found["errors"]},
        ids=None if found["ids"] is None else tuple(found["ids"]),
        chunks=dict(found.get("chunks", ())),
    )


def _pack(content: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(content | {"v": VERSION})
    return packed


def _unpack(block: bytes, *versions: int) -> dict[str, Any]:
    try:
        found: dict[str, Any] = msgpack.unpackb(block)
        version = found["v"]
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise UnreadableBlock("a block in Redis is damaged, or not one of ours") from error
    if version not in (versions or (VERSION,)):
        raise UnreadableBlock(f"a block of version {version!r} lies in Redis, this program reads version {VERSION}")
    return found

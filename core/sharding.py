"""Cut the inputs of a job into shards: consecutive slices, the unit of claiming, retry and storage."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Input:
    """One text to embed, with the id its client gave it, if any."""

    text: str
    id: str | None = None


@dataclass(frozen=True, order=True)
class Span:
    """Which inputs of a job a shard holds: `count` of them from index `first`. Written `first+count`, its name in the ledger."""

    first: int
    count: int

    @property
    def end(self) -> int:
        return self.first + self.count

    def __str__(self) -> str:
        return f"{self.first}+{self.count}"

    @classmethod
    def parse(cls, name: str) -> Self:
        first, count = name.split("+")
        return cls(int(first), int(count))


@dataclass(frozen=True)
class Shard:
    span: Span
    inputs: tuple[Input, ...]


def cut(inputs: Iterable[Input], *, max_inputs: int, max_characters: int) -> Iterator[Shard]:
    """Shards in input order, lazily: at most one shard of inputs is held at a time.

    A shard ends before it would pass `max_inputs` or `max_characters`; an input longer than `max_characters` is a shard of
    its own.
    """
    first, held, characters = 0, list[Input](), 0
    for item in inputs:
        if held and (len(held) == max_inputs or characters + len(item.text) > max_characters):
            yield Shard(Span(first, len(held)), tuple(held))
            first, held, characters = first + len(held), [], 0
        held.append(item)
        characters += len(item.text)
    if held:
        yield Shard(Span(first, len(held)), tuple(held))


def covering(spans: Iterable[Span], offset: int, end: int) -> list[Span]:
    """The spans that hold inputs `offset` to `end` (exclusive) without a gap, in order.

    Stops at the first input that no span holds, so the answer may reach less far than `end`.
    """
    chosen: list[Span] = []
    position = offset
    for span in sorted(spans):
        if position >= end or span.first > position:
            break
        if span.end > position:
            chosen.append(span)
            position = span.end
    return chosen

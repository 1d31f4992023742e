"""Files that were sent, in pieces in Redis. `core.ledger` maps the keys."""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from core.errors import FileNotFound, FilesFull
from core.ledger.ledger import UNKNOWN_RETRY_SECONDS, Ledger, _milliseconds, _record, _text, _translated

PIECE_BYTES = 2**20
"""Every piece of a file but its last has so many bytes: where a byte lies follows from its number."""

FILE_BYTES = 4096
"""What a file counts beside its content: its record, and its places in the indexes."""

UPLOAD_SECONDS = 600
"""How long the pieces of a file that is still being sent outlive their sender."""


@dataclass(frozen=True)
class File:
    """A file that was sent, whole. Times are Unix seconds."""

    id: str
    filename: str
    purpose: str
    size_bytes: int
    created_at: float
    expires_at: float

    @classmethod
    def from_record(cls, file_id: str, record: dict[str, str]) -> Self:
        return cls(
            id=file_id,
            filename=record["filename"],
            purpose=record["purpose"],
            size_bytes=int(record["bytes"]),
            created_at=int(record["created_at"]) / 1000,
            expires_at=int(record["expires_at"]) / 1000,
        )


class Files:
    """All files that were sent.

    Raises:
        LedgerUnavailable: from every method, when Redis is out of reach, full or refuses.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def new_id(self) -> str:
        return f"file-{uuid.uuid4().hex}"

    @_translated
    def upload(self, file_id: str, tenant: str, number: int, piece: bytes, limits: dict[str, int]) -> None:
        """Store piece `number` of a file that is not whole yet; the first counts for `FILE_BYTES` more than it has.

        `limits` are bytes by their settings.

        Raises:
            FilesFull: the files would take too much.
        """
        lifetime = _milliseconds(UPLOAD_SECONDS)
        outcome, *found = self._ledger._run(
            "upload", file_id, tenant, number, lifetime, json.dumps(limits), piece, len(piece) + FILE_BYTES * (number == 0)
        )
        if _text(outcome) == "full":
            setting, held = _text(found[0]), int(found[1])
            whose = "your files" if "TENANT" in setting else "the files that were sent"
            raise FilesFull(
                f"there is no room: {whose} take {held} bytes, the limit is {limits[setting]} ({setting}); delete what you no "
                "longer need",
                retry_after_seconds=UNKNOWN_RETRY_SECONDS,
            )

    @_translated
    def keep(
        self, file_id: str, tenant: str, *, pieces: int, filename: str, purpose: str, size_bytes: int, ttl_seconds: int
    ) -> File:
        """Have the file exist, whose pieces are all stored.

        Raises:
            FileNotFound: pieces of it have vanished, as it took too long.
        """
        record = {"filename": filename, "purpose": purpose, "bytes": size_bytes}
        fields = [part for pair in record.items() for part in pair]
        created = self._ledger._run("keep", file_id, tenant, pieces, _milliseconds(ttl_seconds), *fields)
        if created is None:
            raise FileNotFound("parts of the file have vanished while it was sent; send it again", param="file")
        created_at = int(created) / 1000
        return File(file_id, filename, purpose, size_bytes, created_at, created_at + ttl_seconds)

    @_translated
    def discard(self, file_id: str, tenant: str) -> None:
        """Remove a file, or what came of it.

        Raises:
            FileNotFound: the tenant has no such file.
        """
        if not self._ledger._run("discard", file_id, tenant):
            raise file_not_found(file_id)

    @_translated
    def get(self, file_id: str, tenant: str) -> File:
        """The file's record.

        Raises:
            FileNotFound: no such file, another tenant's, or expired.
        """
        record = _record(self._ledger._redis.hgetall(self._ledger._key("file", file_id)))
        if record.get("tenant") != tenant:
            raise file_not_found(file_id)
        return File.from_record(file_id, record)

    @_translated
    def find(self, file_ids: list[str]) -> dict[str, File]:
        """Those of the files that are there, by id; of a tenant whose index named them."""
        with self._ledger._redis.pipeline(transaction=False) as pipe:
            for file_id in file_ids:
                pipe.hgetall(self._ledger._key("file", file_id))
            records = [_record(found) for found in pipe.execute()]
        return {file_id: File.from_record(file_id, record) for file_id, record in zip(file_ids, records, strict=True) if record}

    @_translated
    def ids(self, tenant: str) -> list[str]:
        """Ids of the tenant's files, newest first, those of batches too. Some may have expired."""
        self._ledger._run("lapse")
        return [_text(name) for name in self._ledger._redis.zrevrange(self._ledger._key("files", tenant), 0, -1)]

    def read(self, file: File, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Bytes `start` to `end` (exclusive) of the file, piece by piece.

        Raises:
            FileNotFound: it was deleted or has expired meanwhile; from the iterator.
        """
        end = file.size_bytes if end is None else end
        for number in range(start // PIECE_BYTES, -(-end // PIECE_BYTES)):
            first = number * PIECE_BYTES
            yield self._piece(file.id, number)[max(0, start - first) : end - first]

    @_translated
    def _piece(self, file_id: str, number: int) -> bytes:
        piece: Any = self._ledger._redis.hget(self._ledger._key("content", file_id), str(number))
        if piece is None:
            raise file_not_found(file_id)
        return bytes(piece)


def file_not_found(file_id: str, param: str = "id") -> FileNotFound:
    shown = file_id if len(file_id) <= 64 else file_id[:64] + "…"
    return FileNotFound(f"no file {shown!r}; it never existed, was deleted, or its lifetime is over", param=param)

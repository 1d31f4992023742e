"""Take a file of a multipart request: stored piece by piece while it comes, never held.

Only a whole file exists; whatever goes wrong before leaves nothing behind.
"""

import logging
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio import multipart

from api.bodies import PIECE_BYTES as BODY_PIECE_BYTES
from api.bodies import Body
from api.queries import whole
from api.schemas import WORD, shown
from core.config import Settings
from core.errors import FileNotFound, InvalidRequest, LedgerUnavailable, RequestTooLarge
from core.ledger import FILE_BYTES, PIECE_BYTES, File, Files

log = logging.getLogger(__name__)

FRAME_BYTES = 65_536
"""Most of a request that is no file: boundaries and fields."""

MOST_FIELD_BYTES = 512
MOST_NAME_CHARACTERS = 255

PURPOSE = "batch"
LEAST_TTL_SECONDS = 3600
"""The least that OpenAI lets a client ask for."""

FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")


def _limits_of_all(settings: Settings) -> dict[str, int]:
    """Bytes of many files, by their settings."""
    limits = {"MAX_FILES_BYTES": settings.max_files_bytes, "MAX_TENANT_FILES_BYTES": settings.max_tenant_files_bytes}
    return {setting: limit for setting, limit in limits.items() if limit is not None}


def limit_of(settings: Settings) -> tuple[int, str]:
    """Most bytes of one file, and the setting at fault: one that is larger than all may be together never fits."""
    alone = [(max(0, limit - FILE_BYTES), setting) for setting, limit in _limits_of_all(settings).items()]
    return min([(settings.max_file_bytes, "MAX_FILE_BYTES"), *alone])


class Upload:
    """A file that is on its way in."""

    def __init__(self, files: Files, tenant: str, settings: Settings) -> None:
        self._files = files
        self._tenant = tenant
        self._settings = settings
        self._id = files.new_id()
        self._fields: dict[str, str] = {}
        self._filename: str | None = None
        self._held = bytearray()
        self._size_bytes = 0
        self._pieces = 0
        self._limits = _limits_of_all(settings)

    def take(self, body: Body, boundary: bytes) -> File:
        """Store the file of the body.

        Raises:
            InvalidRequest: or a kind of it, for what the client did wrong.
            FilesFull: the files would take too much.
            LedgerUnavailable: Redis went away.
        """
        try:
            for event, data in _parts(body, boundary):
                self._take_part(event, data)
            return self._keep()
        except LedgerUnavailable:
            raise  # what was stored expires by itself; trying to remove it would only cost another timeout
        except BaseException:
            self._discard()
            raise

    def _take_part(self, event: Any, data: bytes) -> None:
        if isinstance(event, multipart.File):
            self._take_file(event, data)
            return
        if event.name not in FIELDS:
            param = event.name if WORD.fullmatch(event.name or "") else None
            raise InvalidRequest(f"unknown field {shown(event.name)}; known are file, {', '.join(FIELDS)}", param=param)
        value = self._fields.get(event.name, "") + data.decode(errors="replace")
        if len(value) > MOST_FIELD_BYTES:
            raise InvalidRequest(f"{event.name} is limited to {MOST_FIELD_BYTES} characters", param=event.name)
        self._fields[event.name] = value

    def _take_file(self, event: multipart.File, data: bytes) -> None:
        if event.name != "file":
            raise InvalidRequest(f"the file must be the field file, got {shown(event.name)}", param="file")
        if self._filename is None:
            self._filename = event.filename.encode(errors="replace").decode()[:MOST_NAME_CHARACTERS] or "file"
            self._event = event
        elif event is not self._event:
            raise InvalidRequest("the field file is given more than once", param="file")
        self._size_bytes += len(data)
        limit_bytes, setting = limit_of(self._settings)
        if self._size_bytes > limit_bytes:
            limit = f"{limit_bytes} bytes ({setting})"
            raise RequestTooLarge(f"the file is limited to {limit}, more were sent", param="file")
        self._held += data
        while len(self._held) >= PIECE_BYTES:
            self._store()

    def _store(self) -> None:
        self._files.upload(self._id, self._tenant, self._pieces, bytes(self._held[:PIECE_BYTES]), self._limits)
        del self._held[:PIECE_BYTES]
        self._pieces += 1

    def _keep(self) -> File:
        if self._filename is None:
            raise InvalidRequest("the request has no file; it must be the field file, with a filename", param="file")
        if not self._size_bytes:
            raise InvalidRequest("the file is empty", param="file", code="empty_file")
        ttl_seconds = self._read_fields()
        if self._held:
            self._store()
        return self._files.keep(
            self._id,
            self._tenant,
            pieces=self._pieces,
            filename=self._filename,
            purpose=PURPOSE,
            size_bytes=self._size_bytes,
            ttl_seconds=ttl_seconds,
        )

    def _read_fields(self) -> int:
        """The file's lifetime in seconds; the purpose is checked."""
        purpose, anchor = self._fields.get("purpose"), self._fields.get("expires_after[anchor]")
        if purpose != PURPOSE:
            found = "got none" if purpose is None else f"got {shown(purpose)}"
            raise InvalidRequest(f"purpose must be {PURPOSE!r}, the only one here, {found}", param="purpose")
        raw = self._fields.get("expires_after[seconds]")
        if raw is None and anchor is None:
            return self._settings.file_ttl_seconds
        if anchor != "created_at":
            raise InvalidRequest("expires_after[anchor] must be 'created_at'", param="expires_after[anchor]")
        most = self._settings.max_ttl_seconds
        seconds = whole(raw or "")
        if seconds is None or not LEAST_TTL_SECONDS <= seconds <= most:
            limits = f"a whole number from {LEAST_TTL_SECONDS} to {most} (MAX_TTL_SECONDS)"
            raise InvalidRequest(f"expires_after[seconds] must be {limits}, got {shown(raw)}", param="expires_after[seconds]")
        return seconds

    def _discard(self) -> None:
        if not self._pieces:
            return
        try:
            with suppress(FileNotFound):
                self._files.discard(self._id, self._tenant)
        except LedgerUnavailable as error:
            log.warning("what was stored of %s stays until it expires: %s", self._id, error)


def _parts(body: Body, boundary: bytes) -> Iterator[tuple[Any, bytes]]:
    """Each part's head, as `File` or `Field`, with some of its content, as often as some comes.

    Raises:
        InvalidRequest: the body is no multipart form, or ends early.
    """
    decoder = multipart.MultipartDecoder(boundary, 4 * BODY_PIECE_BYTES, max_parts=16)
    head: Any = None
    for piece in chain[bytes | None](body, [None]):
        try:
            decoder.receive_data(piece)
            while not isinstance(event := decoder.next_event(), multipart.NeedData | multipart.Epilogue):
                if isinstance(event, multipart.File | multipart.Field):
                    head = event
                elif isinstance(event, multipart.Data):
                    yield head, event.data
        except (ValueError, AttributeError, RequestEntityTooLarge) as error:
            reason = "it ends early" if piece is None else "a part's head is broken or too long"
            raise InvalidRequest(f"the body is no valid multipart/form-data: {reason}; nothing was accepted") from error

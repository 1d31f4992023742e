"""OpenAI's files: those that were sent for batches, and the two that an ended batch has."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import islice
from typing import Annotated, Any, Literal, NotRequired

from flask import Blueprint, Response, request
from pydantic import Field
from typing_extensions import TypedDict
from werkzeug.exceptions import ClientDisconnected, RequestTimeout, UnsupportedMediaType

from api.answers import json_answer, streamed
from api.batch_output import BatchFile, settled
from api.bodies import Body, has_gone, refusing
from api.conditions import asked_range
from api.openapi import Answer, describes
from api.queries import Query
from api.records import DeletedFile, FileList, FileRecord
from api.results import started
from api.services import services, tenant_of
from api.uploads import FRAME_BYTES, LEAST_TTL_SECONDS, PURPOSE, Upload, limit_of
from core.errors import (
    BatchNotFound,
    FileNotFound,
    FilesFull,
    JobNotFound,
    PlacesFull,
    RangeNotSatisfiable,
    RequestTooLarge,
    ResultStoreUnavailable,
)
from core.ledger import Batch, File
from core.ledger.files import file_not_found

views = Blueprint("files", __name__, url_prefix="/v1/files")

MULTIPART, BYTES = "multipart/form-data", "application/octet-stream"
OF_BATCH = re.compile(r"file-(output|error)-(\w+)")
MOST_LISTED = 10_000
LISTED_AT_ONCE = 100


FileId = Annotated[str, Field(description="As the file's record tells it.")]


class ListQuery(TypedDict, total=False):
    purpose: str
    limit: Annotated[int, Field(ge=1, le=MOST_LISTED)]
    order: Literal["asc", "desc"]
    after: Annotated[str, Field(description="The `last_id` of the page before.")]


UploadForm = TypedDict(
    "UploadForm",
    {
        "file": bytes,
        "purpose": Literal["batch"],
        "expires_after[anchor]": NotRequired[Literal["created_at"]],
        "expires_after[seconds]": NotRequired[Annotated[int, Field(ge=LEAST_TTL_SECONDS)]],
    },
)


@views.post("")
@describes(
    {200: Answer("The file is kept.", FileRecord)},
    bodies={MULTIPART: UploadForm},
    errors=(RequestTimeout, RequestTooLarge, UnsupportedMediaType, FileNotFound, FilesFull),
)
def create() -> Response:
    """Send a file for a batch."""
    Query(request.args, ())
    with refusing(request):
        boundary = request.mimetype_params.get("boundary", "")
        if request.mimetype != MULTIPART or not boundary:
            raise UnsupportedMediaType(f"Content-Type must be {MULTIPART} with a boundary, got {request.mimetype[:64] or 'none'}")
        found = services()
        limit_bytes, setting = limit_of(found.settings)
        body = Body(request, limit_bytes=limit_bytes + FRAME_BYTES, setting=setting)
        file = Upload(found.files, tenant_of(request), found.settings).take(body, boundary.encode(errors="replace"))
    return json_answer(file_record(file))


@views.get("")
@describes({200: Answer("A page.", FileList)}, query=(ListQuery,), errors=(FileNotFound, PlacesFull, ResultStoreUnavailable))
def list_files() -> Response:
    """List files, newest first.

    Those of batches on the page are measured, each once. That takes as long as reading them; one list at a time does it."""
    query = Query(request.args, ListQuery.__annotations__)
    limit = query.whole("limit", MOST_LISTED, minimum=1, maximum=MOST_LISTED)
    ids = services().files.ids(tenant_of(request))
    if query.one_of("order", ("asc", "desc")) == "asc":
        ids.reverse()
    if after := query.text("after"):
        if after not in ids:
            raise file_not_found(after, param="after")
        ids = ids[ids.index(after) + 1 :]
    if purpose := query.text("purpose"):
        ids = [file_id for file_id in ids if _purpose(file_id) == purpose]
    found = list[File | BatchFile]()
    for first in range(0, len(ids), LISTED_AT_ONCE):
        found += islice(_files(ids[first : first + LISTED_AT_ONCE]), limit + 1 - len(found))
        if len(found) > limit:
            break
    shown = _records(found[:limit])
    return json_answer(
        {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(found) > limit,
        }
    )


@views.get("/<file_id>")
@describes({200: Answer("The file's record.", FileRecord)}, errors=(FileNotFound, ResultStoreUnavailable))
def show(file_id: FileId) -> Response:
    """See a file's record."""
    Query(request.args, ())
    with _known_as(file_id):
        return json_answer(file_record(_find(file_id)))


@views.delete("/<file_id>")
@describes({200: Answer("The file is gone.", DeletedFile)}, errors=(FileNotFound,))
def remove(file_id: FileId) -> Response:
    """Delete a file.

    With the last file of a batch the vectors of its job go."""
    Query(request.args, ())
    with _known_as(file_id):
        file = _find(file_id)
    if isinstance(file, File):
        services().files.discard(file_id, tenant_of(request))
    elif not services().batches.delete_file(file.batch, file.kind):
        raise file_not_found(file_id)
    return json_answer({"id": file_id, "object": "file", "deleted": True})


@views.get("/<file_id>/content")
@describes(
    {
        200: Answer("The file.", {BYTES: bytes}, {"ETag": str}),
        206: Answer("A part of it.", {BYTES: bytes}, {"ETag": str, "Content-Range": str}),
    },
    headers={"Range": str, "If-Range": str},
    errors=(FileNotFound, RangeNotSatisfiable, ResultStoreUnavailable),
)
def content(file_id: FileId) -> Response:
    """Read a file.

    All of it, or the part that `Range` asks for. That of a batch is made while it is sent."""
    Query(request.args, ())
    headers = {"ETag": f'"{file_id}"', "Accept-Ranges": "bytes"}  # an id is never used for other bytes
    with _known_as(file_id):
        file = _find(file_id)
        size_bytes = _known_bytes(file)
        if size_bytes is None and "Range" in request.headers:
            size_bytes = _measure(file)
        part = None if size_bytes is None else asked_range(request, headers["ETag"], size_bytes)
        if part is not None:
            length = {"Content-Length": str(part.stop - part.start)}
            return streamed(started(_read(file, part.start, part.stop)), BYTES, {**headers, **part.headers, **length}, 206)
        if size_bytes is not None:
            headers["Content-Length"] = str(size_bytes)
        return streamed(started(_read(file)), BYTES, headers)


def _read(file: File | BatchFile, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    if isinstance(file, File):
        return services().files.read(file, start, stop)
    return file.read() if stop is None else file.read_range(start, stop)


def _find(file_id: str) -> File | BatchFile:
    """The file, of either kind."""
    tenant = tenant_of(request)
    found = OF_BATCH.fullmatch(file_id)
    if found is None:
        return services().files.get(file_id, tenant)
    kind, batch = found[1], _settled(services().batches.get(f"batch_{found[2]}", tenant))
    if not batch.has(kind):
        raise file_not_found(file_id)
    return _of_batch(batch, kind)


def _of_batch(batch: Batch, kind: str) -> BatchFile:
    return BatchFile(services().ledger, services().batches, batch, kind)


def _settled(batch: Batch) -> Batch:
    return settled(services().ledger, services().batches, batch)


@contextmanager
def _known_as(file_id: str) -> Iterator[None]:
    """A batch or job that is not there means that its file is not."""
    try:
        yield
    except (BatchNotFound, JobNotFound):
        raise file_not_found(file_id) from None


def _purpose(file_id: str) -> str:
    return "batch_output" if OF_BATCH.fullmatch(file_id) else PURPOSE


def _files(ids: list[str]) -> Iterator[File | BatchFile]:
    """Those of the files that are there."""
    sent = services().files.find([file_id for file_id in ids if not OF_BATCH.fullmatch(file_id)])
    names = {file_id: found for file_id in ids if (found := OF_BATCH.fullmatch(file_id))}
    batches = services().batches.find(list({f"batch_{found[2]}" for found in names.values()}))
    for file_id in ids:
        if file_id in sent:
            yield sent[file_id]
        elif (found := names.get(file_id)) and (batch := batches.get(f"batch_{found[2]}")):
            with suppress(BatchNotFound, JobNotFound):  # deleted just now
                batch = batches[batch.id] = _settled(batch)
                if batch.has(found[1]):
                    yield _of_batch(batch, found[1])


def _records(files: list[File | BatchFile]) -> list[dict[str, Any]]:
    """Their records, but for those that are deleted meanwhile."""
    records = []
    with nullcontext() if all(_known_bytes(file) is not None for file in files) else services().measuring.require():
        for file in files:
            with suppress(BatchNotFound, JobNotFound):
                records.append(file_record(file))
    return records


def _known_bytes(file: File | BatchFile) -> int | None:
    return file.size_bytes if isinstance(file, File) else file.known_bytes


def _measure(file: File | BatchFile) -> int:
    """How long it is; what was measured is kept.

    Raises:
        ClientDisconnected: the client went away meanwhile.
    """
    if isinstance(file, File):
        return file.size_bytes
    if file.known_bytes is None:
        for _ in file.read():
            if has_gone(request):
                raise ClientDisconnected("the client has gone")
    return file.known_bytes or 0


def file_record(file: File | BatchFile) -> dict[str, Any]:
    """A file as OpenAI's clients read it. Times are whole Unix seconds."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": _measure(file),
        "created_at": int(file.created_at),
        "expires_at": int(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }

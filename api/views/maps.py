"""See the vectors of a job as points on a plane."""

from typing import Annotated

import numpy as np
from flask import Blueprint, Response, request
from pydantic import Field
from typing_extensions import TypedDict

from api.answers import json_answer
from api.conditions import etag_of, unchanged
from api.dtypes import Vectors, vectors_of
from api.openapi import Answer, describes
from api.projection import project
from api.queries import Query
from api.records import MapRecord
from api.results import find_page, read_parts
from api.schemas import JobId
from api.services import services, tenant_of
from core.errors import JobNotFound, JobNotReady, PlacesFull, ResultStoreUnavailable
from core.jobs import Job

views = Blueprint("maps", __name__)

MOST_POINTS = 5000
POINTS = 2000
DIGITS = 5
"""Of a coordinate: finer than any screen."""


class MapQuery(TypedDict, total=False):
    limit: Annotated[int, Field(ge=2, le=MOST_POINTS, description=f"Most points; {POINTS} when it is not given.")]


@views.get("/v1/jobs/<job_id>/map")
@describes(
    {
        200: Answer("The map.", MapRecord, {"ETag": Annotated[str | None, Field(description="Of a job that has ended.")]}),
        304: Answer("The client has it already.", headers={"ETag": str}),
    },
    query=(MapQuery,),
    headers={"If-None-Match": str},
    errors=(JobNotFound, JobNotReady, PlacesFull, ResultStoreUnavailable),
)
def show(job_id: JobId) -> Response:
    """See the vectors of a job as points on a plane.

    It is the plane of their two principal components: texts that are alike lie near each other. A running job has the first
    vectors that are there; inputs that failed have no point.
    """
    limit = Query(request.args, MapQuery.__annotations__).whole("limit", POINTS, minimum=2, maximum=MOST_POINTS)
    job = find_page(services().ledger, job_id, tenant_of(request), offset=0, limit=None).job
    etag = etag_of(job, "map", limit, np.__version__)
    if answer := unchanged(request, etag):
        return answer
    with services().maps.require():
        indices, vectors = _read(job, limit)
        if not indices and not job.status.ended:
            raise JobNotReady("no vector of the job is there yet")
        found = project(vectors)
    points = zip(indices, found.points.round(DIGITS).tolist(), strict=True)
    record = {
        "id": job.id,
        "object": "map",
        "total": job.counts.total,
        "points": [{"index": index, "x": x, "y": y} for index, (x, y) in points],
        "explained": [round(share, DIGITS) for share in found.explained],
    }
    return json_answer(record, headers={"ETag": etag} if etag else None)


def _read(job: Job, limit: int) -> tuple[list[int], Vectors]:
    """The first vectors that are there, up to `limit`, behind the indices of their inputs."""
    ledger, total = services().ledger, job.counts.total
    dimensions = job.dimensions or 0  # known with the first vector
    most = min(limit, job.counts.done if job.status.ended else total) if dimensions else 0
    indices, vectors = list[int](), np.empty((most, dimensions), dtype="<f4")
    for part in read_parts(ledger, job.id, ledger.finished(job.id), 0, total if most else 0):
        rows = vectors_of(part.block, dimensions, part.start, part.stop)
        there = np.flatnonzero(np.isfinite(rows).all(axis=1))[: most - len(indices)]
        vectors[len(indices) : len(indices) + len(there)] = rows[there]
        indices += (part.first + there).tolist()
        if len(indices) == most:
            break
    return indices, vectors[: len(indices)]

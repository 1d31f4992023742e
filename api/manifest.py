"""What the vectors of an ended job are, and how to tell that a copy of them is whole.

Computed as it is read, block by block: SHA-256 takes about as long as sending the same bytes through a socket, and a worker that
did it for every shard would do it for nothing in most jobs.
"""

import hashlib
from collections.abc import Iterator

import orjson

from api.dtypes import FLOAT32
from api.npy import NpyFile
from api.results import Page, Part


def write_manifest(page: Page, parts: Iterator[Part]) -> Iterator[bytes]:
    """The manifest as JSON.

    Args:
        page: of the whole job: what `?format=npy` gives.
        parts: all finished shards, also those behind a gap that a cancelled job has.
    """
    job = page.job
    head = {
        "object": "manifest",
        "job": job.id,
        "status": job.status.value,
        "model": job.model,
        "revision": job.revision,
        "engine": job.engine,
        "device": job.device,
        "dtype": job.dtype,
        "parity": job.parity,
        "dimensions": job.dimensions,
        "normalize": job.options.normalize,
        "prompt_name": job.options.prompt_name,
        "truncate": job.options.truncate,
        **({"chunk_overlap": job.options.chunk_overlap} if job.options.truncate == "chunk" else {}),
        "counts": {"total": job.counts.total, "done": job.counts.done, "failed": job.counts.failed},
        "created_at": job.created_at,
        "ended_at": job.ended_at,
    }
    between = orjson.dumps(head)[:-1] + b',"shards":['
    if job.dimensions is None:
        yield between + b'],"npy":null}'
        return
    file = NpyFile.of(page, FLOAT32)
    whole = hashlib.sha256(file.head)
    for part in parts:
        rows = file.rows(part)
        if part.first < page.end:
            whole.update(rows)
        shard = {"first": part.first, "count": part.stop - part.start, "sha256": hashlib.sha256(rows).hexdigest()}
        yield between + orjson.dumps(shard)
        between = b","
    npy = {"count": page.count, "bytes": file.size_bytes, "head_bytes": len(file.head), "sha256": whole.hexdigest()}
    yield (between if between != b"," else b"") + b'],"npy":' + orjson.dumps(npy) + b"}"

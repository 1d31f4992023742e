"""Choose the queue of a job."""

import hashlib
from collections.abc import Collection

QUEUES = ("cpu", "gpu")


def choose_queue(requested: str, *, job_id: str, live_queues: Collection[str], gpu_share: float) -> str:
    """`cpu` or `gpu`.

    `auto` takes gpu when a worker on it lives, for a share `gpu_share` of the jobs; which ones follows from the job's id
    alone, so the choice is the same wherever it is made.
    """
    if requested != "auto":
        return requested
    if "gpu" not in live_queues:
        return "cpu"
    return "gpu" if share_of(job_id) < gpu_share else "cpu"


def share_of(job_id: str) -> float:
    """A number in [0, 1) that is spread evenly over job ids."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:8]) / 2**64

"""Choose the queue of a job.

Clients ask for `cpu`, `gpu` or `auto`. The ledger and Celery know the queues of each model: `cpu` and `gpu` of the default one,
`cpu.<alias>` and `gpu.<alias>` of another.
"""

import hashlib
from collections.abc import Collection

QUEUES = ("cpu", "gpu")
"""The queues of one model."""

HOME, FALLBACK = "gpu", "cpu"
"""Where `auto` jobs within `GPU_SHARE` are worked on, and where while no worker of that queue lives."""


def queue_of(asked: str, alias: str | None) -> str:
    """The queue `cpu` or `gpu` of a model; without an alias of the default one."""
    return asked if alias is None else f"{asked}.{alias}"


def base_of(queue: str) -> str:
    """`cpu` or `gpu`, whosever model's queue it is."""
    return queue.partition(".")[0]


def beside(queue: str, asked: str) -> str:
    """The queue `cpu` or `gpu` of the same model."""
    return asked + queue.removeprefix(base_of(queue))


def choose_queue(requested: str, *, job_id: str, live_queues: Collection[str], gpu_share: float) -> str:
    """`cpu` or `gpu`.

    `auto` takes gpu when a worker on it lives, for a share `gpu_share` of the jobs; which ones follows from the job's id
    alone, so the choice is the same wherever it is made.
    """
    if requested != "auto":
        return requested
    return HOME if HOME in live_queues and may_move(requested, job_id=job_id, gpu_share=gpu_share) else FALLBACK


def may_move(requested: str, *, job_id: str, gpu_share: float) -> bool:
    """Whether the job goes from one queue to the other as gpu workers come and go."""
    return requested == "auto" and share_of(job_id) < gpu_share


def auto_shares(*, live_queues: Collection[str], gpu_share: float) -> tuple[dict[str, float], str]:
    """Share of the `auto` jobs that go to each queue now, and why: `setting` (`GPU_SHARE`) or `no_gpu_worker`."""
    share, reason = (gpu_share, "setting") if HOME in live_queues else (0.0, "no_gpu_worker")
    return {HOME: share, FALLBACK: round(1 - share, 12)}, reason


def share_of(job_id: str) -> float:
    """A number in [0, 1) that is spread evenly over job ids."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:8]) / 2**64

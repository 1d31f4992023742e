"""The one Celery task."""

from core.errors import LedgerUnavailable
from core.queues import EMBED_PENDING
from worker import app, lifecycle
from worker.log import log


@app.task(name=EMBED_PENDING)
def embed_pending(queue: str) -> None:
    """Claim, embed and commit what waits in a queue, for about ten seconds, then send itself again if work remains.

    The message says only that there is work. What the work is, and who may do it, is in the ledger.
    """
    if queue not in lifecycle.model().queues:
        log.warning("ignored a message for the queue %.40r, which is none of this worker's model", queue)
        return
    try:
        lifecycle.process().drain(queue)
    except LedgerUnavailable as error:
        log.warning("stopped working, Redis is out of reach; the shards' leases bring them back: %s", error)

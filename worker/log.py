"""The service's own logger. It logs ids, counts and times, never texts."""

import logging
from collections.abc import Iterable

from core.ledger import ClaimedShard

log = logging.getLogger("vector-api")


def of(shards: Iterable[ClaimedShard]) -> dict[str, str]:
    """The fields of a record that is about these shards (`extra`): their job and shard, where there is only one."""
    found = {(shard.job_id, str(shard.span)) for shard in shards}
    jobs = {job_id for job_id, _ in found}
    return ({"job": jobs.pop()} if len(jobs) == 1 else {}) | ({"shard": found.pop()[1]} if len(found) == 1 else {})

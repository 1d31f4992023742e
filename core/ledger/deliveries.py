"""Deliveries: events on their way to the webhooks that want them. `core.ledger` maps the keys.

A delivery comes to be in the very step that ends its job (`notify` in common.lua). Whoever sends takes it for a while (`take`)
and tells what came of it (`tried`); of one that died meanwhile, others take it over.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from core.ledger.batches import batch_of
from core.ledger.ledger import Ledger, _milliseconds, _record, _text, _translated

State = Literal["waiting", "delivered", "given_up"]
WAITING: Final = "waiting"
DELIVERED: Final = "delivered"
GIVEN_UP: Final = "given_up"


@dataclass(frozen=True)
class Delivery:
    """One event for one target. Times are Unix seconds."""

    id: str
    """<job>/<target>"""
    event: str
    state: State
    tries: int
    created_at: float
    ended_at: float | None = None
    answer: str = ""
    """To the last try: a status of HTTP, or a word for what went wrong; empty before it has come."""
    next_try_at: float | None = None
    """None of one that has ended."""

    @property
    def target(self) -> str:
        """The name of its target, see `core.webhooks`."""
        return self.id.partition("/")[2]

    @property
    def event_id(self) -> str:
        """The same at every try, and for every target: a job ends once."""
        return "evt_" + self._job_id.removeprefix("job_")

    @property
    def subject(self) -> str:
        """The id of what has ended, as clients know it."""
        return batch_of(self._job_id) if self.event.startswith("batch.") else self._job_id

    @property
    def _job_id(self) -> str:
        return self.id.partition("/")[0]


class Deliveries:
    """All deliveries.

    Raises:
        LedgerUnavailable: from every method, when Redis is out of reach, full or refuses.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @_translated
    def take(self, tenant: str, target: str, *, lease_seconds: float) -> Delivery | None:
        """The delivery to try next, counted as tried; None when none is due. Nobody else gets it for `lease_seconds`."""
        found = self._ledger._run("take", tenant, target, _milliseconds(lease_seconds))
        if found is None:
            return None
        delivery_id, event, tries, created = found
        return Delivery(_text(delivery_id), _text(event), WAITING, int(tries), int(created) / 1000)

    @_translated
    def tried(self, tenant: str, delivery: Delivery, state: State, answer: str, *, retry_seconds: float = 0) -> bool:
        """Say what came of a try; a delivery that is still waiting is tried again after `retry_seconds`.

        Returns False, having changed nothing, when it has ended, or another try of it has begun and this one was not the last.
        """
        args = (delivery.id, tenant, delivery.target, delivery.tries, state, answer, _milliseconds(retry_seconds))
        return bool(self._ledger._run("tried", *args))

    @_translated
    def latest(self, tenant: str, limit: int) -> list[Delivery]:
        """The tenant's deliveries, newest first."""
        redis, key = self._ledger._redis, self._ledger._key
        ids = [_text(name) for name in redis.zrevrange(key("deliveries", tenant), 0, limit - 1)]
        with redis.pipeline(transaction=False) as pipe:
            for name in ids:
                pipe.hgetall(key("delivery", name))
                pipe.zscore(key("due", tenant, name.partition("/")[2]), name)
            found = pipe.execute()
        records = zip(ids, found[::2], found[1::2], strict=True)
        return [_delivery(name, _record(record), due) for name, record, due in records if record]


def _delivery(delivery_id: str, record: dict[str, str], due: Any) -> Delivery:
    return Delivery(
        id=delivery_id,
        event=record["event"],
        state=cast(State, record["state"]),
        tries=int(record["tries"]),
        created_at=int(record["created_at"]) / 1000,
        ended_at=int(record["ended_at"]) / 1000 if "ended_at" in record else None,
        answer=record.get("answer", ""),
        next_try_at=None if due is None else float(due) / 1000,
    )

"""Send events to the webhooks that want them, in the form of Standard Webhooks, again and again until they are taken.

The ledger knows what is to be sent (`core.ledger.deliveries`); any number of API processes share the work. Each target has a
thread of its own here, so one that hangs holds up nobody else.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import orjson
from standardwebhooks import Webhook

from api.outbound import NotSent, Outbound
from api.records import EventRecord
from core.config import Settings
from core.errors import LedgerUnavailable
from core.ledger import DELIVERED, GIVEN_UP, WAITING, Deliveries, Delivery, State
from core.webhooks import Target, Targets

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often a thread with nothing to send asks the ledger."""

TIMEOUT_SECONDS = 15.0
LEASE_SECONDS = 30.0
"""How long one try may take, and when others take it over: resolving the name comes on top."""

FIRST_RETRY_SECONDS = 2.0
LONGEST_RETRY_SECONDS = 3600.0
GIVE_UP_SECONDS = 72 * 3600.0
"""Since the event, as OpenAI does."""

GONE = 410


def retry_seconds(tries: int, chance: float) -> float:
    """How long to wait after so many tries: twice as long each time, up to an hour.

    `chance` (0 to 1) takes up to a half of it, so that what failed together is not tried again together.
    """
    longest = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(tries - 1, 30))
    return longest * (1 - chance / 2)


def event_of(delivery: Delivery) -> EventRecord:
    """The event as it is sent, in OpenAI's shape: what has ended and how, nothing of its content."""
    return {
        "id": delivery.event_id,
        "object": "event",
        "type": delivery.event,
        "created_at": int(delivery.created_at),
        "data": {"id": delivery.subject},
    }


def signed(body: bytes, event_id: str, secret: str, now: float) -> dict[str, str]:
    """The headers of a try."""
    moment = datetime.fromtimestamp(int(now), UTC)
    return {
        "Content-Type": "application/json",
        "User-Agent": "vector-api",
        "webhook-id": event_id,
        "webhook-timestamp": str(int(now)),
        "webhook-signature": Webhook(secret).sign(event_id, moment, body.decode()),
    }


class Webhooks:
    """The senders of one process."""

    def __init__(self, targets: Targets, deliveries: Deliveries, outbound: Outbound) -> None:
        self.targets = targets
        self.deliveries = deliveries
        self._outbound = outbound
        self._lock = threading.Lock()
        self._started = False
        self.stopping: Callable[[], bool] = lambda: False
        """Whether the process is about to stop; nothing new is begun then."""

    @classmethod
    def of(cls, settings: Settings, deliveries: Deliveries) -> "Webhooks":
        """The senders that the settings ask for.

        Raises:
            InvalidSetting: WEBHOOKS_FILE cannot be used.
        """
        return cls(Targets.of(settings), deliveries, Outbound(settings.webhook_networks or ()))

    def start(self) -> None:
        """Begin to send, in the process that calls this. Again, it does nothing."""
        with self._lock:
            if self._started:
                return
            self._started = True
        for target in self.targets.all:
            threading.Thread(target=self._run, args=(target,), name=f"webhook {target.name}", daemon=True).start()

    def _run(self, target: Target) -> None:
        reachable = True
        while not self.stopping():
            try:
                busy = self.deliver_next(target)
                reachable = True
            except LedgerUnavailable as error:
                if reachable:
                    log.warning("no webhooks for now: %s", error)
                busy = reachable = False
            except Exception as error:  # not its text: it may show the URL
                what, told = "sending to the webhook %s of %s failed: %s", {"tenant": target.tenant}
                log.error(what, target.name, target.tenant, type(error).__name__, extra=told)
                busy = False
            if not busy:
                time.sleep(LOOK_SECONDS)

    def deliver_next(self, target: Target) -> bool:
        """Try what is due first for a target. Returns whether anything was."""
        delivery = self.deliveries.take(target.tenant, target.name, lease_seconds=LEASE_SECONDS)
        if delivery is None:
            return False
        body = orjson.dumps(event_of(delivery))
        now = time.time()
        headers = signed(body, delivery.event_id, target.secret, now)
        state: State
        try:
            status = self._outbound.post(target.url, body, headers, timeout_seconds=TIMEOUT_SECONDS)
            state, answer = _state_after(status), str(status)
        except NotSent as reason:
            state, answer = WAITING, str(reason)
        wait_seconds = retry_seconds(delivery.tries, random.random())
        if state == WAITING and time.time() + wait_seconds > delivery.created_at + GIVE_UP_SECONDS:
            state = GIVEN_UP
        level = {DELIVERED: logging.DEBUG, WAITING: logging.INFO, GIVEN_UP: logging.ERROR}[state]
        what = f"{delivery.event} {delivery.event_id} for {target.name} of {target.tenant}"
        told = {"job": delivery.id.partition("/")[0], "tenant": target.tenant}
        log.log(level, "%s: %s at try %d (%s)", what, state.replace("_", " "), delivery.tries, answer, extra=told)
        self.deliveries.tried(target.tenant, delivery, state, answer, retry_seconds=wait_seconds)
        return True


def _state_after(status: int) -> State:
    if 200 <= status < 300:
        return DELIVERED
    return GIVEN_UP if status == GONE else WAITING

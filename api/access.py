"""Who may ask: API keys, and how much a tenant may ask in a minute.

The views in `OPEN` are; every other path, known or not, is behind the keys when there are any.
"""

import ipaddress
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask, Response, g, request

from api.bodies import refusing
from core.config import Settings
from core.errors import Forbidden, InvalidSetting, LedgerUnavailable, Unauthorized
from core.keys import Keys, Owner
from core.ledger import Allowance, Ledger, rate_limited

log = logging.getLogger(__name__)

EVERYBODY = "default"
"""The tenant of all requests while there are no keys."""

OPEN = frozenset({"health.healthz", "docs.description", "docs.page", "docs.style", "dashboard.page", "dashboard.file"})
"""Description and dashboard are the same for all who ask and tell nothing of what the service holds; a browser that opens a page
cannot send a key."""

UNCOUNTED = frozenset({"metrics.show"})
"""No requests of a tenant's: they come every few seconds, and are to be answered without Redis, where requests are counted."""

FIGURES = frozenset({"metrics.show", "queues.list_queues", "models.list_models", "models.show", "health.readyz"})
"""All that a key which only watches is let to: figures of the whole service, which every tenant sees, and nothing of a job."""

SUBMITS = ("jobs.create", "embeddings.create", "batches.create")
CHECK_SECONDS = 1.0


class KeyFile:
    """The keys of a file, read again when it has changed. What is broken then is logged, and the keys before stay valid.

    Raises:
        InvalidSetting: at first, when the file cannot be used or holds no key.
    """

    def __init__(self, file: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._lock = threading.Lock()
        self._state = self._look()
        self._checked = clock()
        self._keys = Keys.read(file)
        if not self._keys:
            raise InvalidSetting(f"API_KEYS_FILE holds no key; `make key NAME=alice` adds one, got {str(file)!r}")

    def owner_of(self, authorization: str | None) -> Owner:
        """Whose key a request's `Authorization` header holds.

        Raises:
            Unauthorized: none, or a key that is not in the file.
        """
        self._refresh()
        scheme, _, key = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("an API key is needed, in the header Authorization: Bearer KEY", code="missing_api_key")
        owner = self._keys.owner_of(key.strip())
        if owner is None:
            raise Unauthorized("the API key is unknown; it was mistyped, or taken back")
        return owner

    def _refresh(self) -> None:
        if self._clock() - self._checked < CHECK_SECONDS or not self._lock.acquire(blocking=False):
            return
        try:
            state, self._checked = self._look(), self._clock()
            if state == self._state:
                return
            self._state = state
            self._keys = Keys.read(self._file)
            level = logging.INFO if self._keys else logging.ERROR
            log.log(level, "API_KEYS_FILE %s has changed: %d keys are valid now", self._file, len(self._keys))
        except InvalidSetting as error:
            log.error("%s; the keys that were valid before stay valid", error.message)
        finally:
            self._lock.release()

    def _look(self) -> tuple[int, ...] | None:
        """What changes with the file: another one in its place, or another content."""
        try:
            found = os.stat(self._file)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_dev, found.st_size


def guard(app: Flask, settings: Settings, ledger: Ledger) -> None:
    """Admit each request, with its tenant in `g.tenant`, or refuse it. What is open to all has no tenant while there are keys.

    Raises:
        InvalidSetting: API_KEYS_FILE cannot be used.
    """
    keys = KeyFile(Path(settings.api_keys_file)) if settings.api_keys_file else None
    most = {
        "requests": settings.max_tenant_requests_per_minute,
        "inputs": settings.max_tenant_inputs_per_minute,
    }

    def admit() -> None:
        g.allowances = {}
        if keys is None:
            g.tenant = EVERYBODY
        if request.endpoint in OPEN:
            return
        with refusing(request):
            if keys is not None:
                owner = keys.owner_of(request.headers.get("Authorization"))
                g.tenant = owner.tenant
                if owner.watches and request.endpoint not in FIGURES:
                    raise Forbidden("this API key may only look at figures: /metrics, /v1/queues, /v1/models and /readyz")
            if (per_minute := most["requests"]) and request.endpoint not in UNCOUNTED:
                _spend(ledger, "requests", per_minute)

    def show_allowances(answer: Response) -> Response:
        allowances: dict[str, Allowance] = g.get("allowances", {})
        if (per_minute := most["inputs"]) and request.endpoint in SUBMITS and answer.status_code not in (401, 403):
            try:  # what is left after the job that was just submitted
                allowances["inputs"] = ledger.spend("inputs", g.tenant, per_minute, 0)
            except LedgerUnavailable as error:
                log.debug("no figures of what is left: %s", error.message)
        for kind, allowance in allowances.items():
            answer.headers[f"x-ratelimit-limit-{kind}"] = str(allowance.limit)
            answer.headers[f"x-ratelimit-remaining-{kind}"] = str(allowance.remaining)
            answer.headers[f"x-ratelimit-reset-{kind}"] = duration(allowance.reset_seconds)
        return answer

    app.before_request(admit)
    app.after_request(show_allowances)


def _spend(ledger: Ledger, kind: str, per_minute: int) -> None:
    allowance = g.allowances[kind] = ledger.spend(kind, g.tenant, per_minute, 1)
    if allowance.wait_seconds:
        raise rate_limited(f"{per_minute} {kind} a minute (MAX_TENANT_{kind.upper()}_PER_MINUTE)", allowance.wait_seconds)


def duration(seconds: float) -> str:
    """A time as OpenAI's headers write it: `0s`, `250ms`, `1.5s`, `6m0s`."""
    milliseconds = math.ceil(seconds * 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"


def require_closed(settings: Settings, address: Any) -> None:
    """Returns when the API may listen at a socket's address: it is this machine's alone, or somebody asks for keys.

    Raises:
        InvalidSetting: neither.
    """
    if settings.api_keys_file or settings.allow_anonymous or ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
        return
    raise InvalidSetting(
        f"API_HOST={settings.api_host} can be reached by others, and nobody is asked for a key. Make one with "
        "`API_KEYS_FILE=keys make key NAME=alice` and set API_KEYS_FILE; or set ALLOW_ANONYMOUS=1, where something else decides "
        "who gets here",
        param="API_HOST",
    )

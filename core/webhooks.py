"""Webhooks: who is told when a job ends. `WEBHOOKS_FILE` lists the targets of each tenant.

    [[alice]]
    url = "https://hooks.example.com/vectors"
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    events = ["job.succeeded", "job.failed"]

The ledger knows a target by its name, which tells neither the rest of its URL nor its secret: both stay in this file.
"""

import base64
import binascii
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

from core.config import Settings
from core.errors import InvalidSetting
from core.keys import NAME, NAME_RULE

JOB_EVENTS = ("job.succeeded", "job.failed", "job.cancelled")
BATCH_EVENTS = ("batch.completed", "batch.failed", "batch.expired", "batch.cancelled")
"""A batch is a job as well, and tells of its end as a batch only."""
EVENTS = JOB_EVENTS + BATCH_EVENTS

URL = re.compile(r"[!-~]{1,2048}")
"""Printable ASCII: a name in other letters is written in Punycode."""

SECRET_PREFIX = "whsec_"
SECRET_BYTES = (24, 64)
"""Fewest and most, by the specification of Standard Webhooks."""


@dataclass(frozen=True)
class Target:
    """Where events of a tenant go."""

    tenant: str
    url: str = field(repr=False)
    secret: str = field(repr=False)
    events: frozenset[str] = frozenset(EVENTS)

    @property
    def parts(self) -> SplitResult:
        return urlsplit(self.url)

    @property
    def name(self) -> str:
        """Its host and a digest of its URL, such as `hooks.example.com#1a2b3c4d`."""
        return f"{self.parts.netloc.lower()}#{hashlib.sha256(self.url.encode()).hexdigest()[:8]}"


class Targets:
    """The targets of all tenants."""

    def __init__(self, targets: Iterable[Target] = ()) -> None:
        self.all = tuple(targets)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The targets of the settings; reads `WEBHOOKS_FILE`.

        Raises:
            InvalidSetting: the file cannot be used; the message names the place, and shows no URL and no secret.
        """
        if settings.webhooks_file is None:
            return cls()
        return cls(read(Path(settings.webhooks_file), plain=bool(settings.webhook_networks)))

    def wanting(self, tenant: str, events: Iterable[str]) -> str:
        """JSON of the names of the tenant's targets by the event, of these, that they want; empty if nobody wants any."""
        own = [target for target in self.all if target.tenant == tenant]
        wanted = {event: [target.name for target in own if event in target.events] for event in events}
        return json.dumps({event: names for event, names in wanted.items() if names}) if any(wanted.values()) else ""


def read(file: Path, *, plain: bool = False) -> list[Target]:
    """The targets that a file lists; `plain`: a URL may be `http://`.

    Raises:
        InvalidSetting: it cannot be read, or lists something that cannot be told.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at .*\)", str(error))  # the rest may show a part of a secret
        raise _bad_file(f"is not valid TOML {place[0] if place else ''}".rstrip(), file) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "not UTF-8"
        raise _bad_file(f"cannot be read ({reason})", file) from None
    if not content:
        raise _bad_file("lists no target; a table such as [[alice]] with url and secret is one", file)
    return [target for tenant, tables in content.items() for target in _read_tenant(tenant, tables, file, plain)]


def _read_tenant(tenant: str, tables: Any, file: Path, plain: bool) -> list[Target]:
    if not NAME.fullmatch(tenant):
        raise _bad_file(f"has a table whose name is no tenant's; a tenant has {NAME_RULE}", file)
    if not (isinstance(tables, list) and tables and all(isinstance(table, dict) for table in tables)):
        raise _bad_file(f"has {tenant} outside of a table; the targets of a tenant are tables such as [[{tenant}]]", file)
    targets: list[Target] = []
    for number, table in enumerate(tables, start=1):
        place = f"[[{tenant}]]" + (f" number {number}" if len(tables) > 1 else "")
        targets.append(_read_target(tenant, table, place, file, plain))
        if targets[-1].name in [target.name for target in targets[:-1]]:
            raise _bad_file(f"has the URL of {place} twice", file)
    return targets


def _read_target(tenant: str, table: dict[str, Any], place: str, file: Path, plain: bool) -> Target:
    known = ("url", "secret", "events")
    for key in table:
        if key not in known:
            raise _bad_file(f"has an unknown key in {place}; known are {', '.join(known)}", file)
    url, secret, events = table.get("url"), table.get("secret"), table.get("events", list(EVENTS))
    if not (isinstance(url, str) and _is_url(url)):
        raise _bad_file(f"has a url in {place} that is not https://host/path, without user and fragment", file)
    if not plain and urlsplit(url).scheme == "http":
        raise _bad_file(
            f"has a url in {place} that is http://; this is for the networks of WEBHOOK_NETWORKS, and there are none", file
        )
    if not (isinstance(secret, str) and _is_secret(secret)):
        least, most = SECRET_BYTES
        raise _bad_file(f"has a secret in {place} that is not {SECRET_PREFIX} and the base64 of {least} to {most} bytes", file)
    if not (isinstance(events, list) and events and all(event in EVENTS for event in events)):
        raise _bad_file(f"has events in {place} that are not a list of some of {', '.join(EVENTS)}", file)
    return Target(tenant, url, secret, frozenset(events))


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        usable = parts.port is None or parts.port > 0
    except ValueError:
        return False
    whole = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc and "#" not in url
    return bool(usable and whole and URL.fullmatch(url))


def _is_secret(secret: str) -> bool:
    try:
        raw = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    return secret.startswith(SECRET_PREFIX) and SECRET_BYTES[0] <= len(raw) <= SECRET_BYTES[1]


def _bad_file(problem: str, file: Path) -> InvalidSetting:
    return InvalidSetting(f"WEBHOOKS_FILE {problem}, got {str(file)!r}", param="WEBHOOKS_FILE")

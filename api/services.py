"""What the views of one process share, and whose request it is."""

from dataclasses import dataclass
from typing import cast

from flask import Request, current_app, g

from api.answered_jobs import AnsweredJobs
from api.ended_jobs import EndedJobs
from api.live_workers import LiveWorkers
from api.places import Places
from api.wakes import Wakes
from api.webhooks import Webhooks
from core.config import Settings
from core.ledger import Batches, Files, Ledger
from core.models import Models


@dataclass(frozen=True)
class Services:
    settings: Settings
    ledger: Ledger
    models: Models
    workers: LiveWorkers
    wakes: Wakes
    ended: EndedJobs
    answered: AnsweredJobs
    tables: Places
    measuring: Places
    files: Files
    batches: Batches
    webhooks: Webhooks


def services() -> Services:
    """The services of the application that answers the current request."""
    return cast(Services, current_app.extensions["services"])


def tenant_of(_request: Request) -> str:
    """Who sent the request; each tenant sees its own jobs only. `api.access` has found it out."""
    return cast(str, g.tenant)

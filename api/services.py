"""What the views of one process share, and whose request it is."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

from flask import Request, current_app, g

from api.answered_jobs import AnsweredJobs
from api.ended_jobs import EndedJobs
from api.live_workers import LiveWorkers
from api.metrics import Metrics
from api.places import Places
from api.wakes import Wakes
from api.webhooks import Webhooks
from core.config import Settings
from core.ledger import Batches, Files, Ledger
from core.models import Models

LARGE_BYTES = 262_144
"""JSON bodies from here on are made objects of a few at a time."""


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
    maps: Places
    measuring: Places
    large_bodies: Places
    files: Files
    batches: Batches
    webhooks: Webhooks
    metrics: Metrics

    def room_for(self, body: bytes) -> ExitStack:
        """Room to make objects of a JSON body, which take several times its bytes. A small one needs no place.

        Raises:
            PlacesFull: as many large ones are being read as the process has places for.
        """
        return self.large_bodies.require() if len(body) > LARGE_BYTES else ExitStack()


def services() -> Services:
    """The services of the application that answers the current request."""
    return cast(Services, current_app.extensions["services"])


def tenant_of(_request: Request) -> str:
    """Who sent the request; each tenant sees its own jobs only. `api.access` has found it out."""
    return cast(str, g.tenant)

"""Put the application together. Opens no connection: the first request of each process does."""

from celery import Celery
from flask import Flask, request

from api import access, errors, requests, token_ids
from api.answered_jobs import AnsweredJobs
from api.answers import add_security_headers
from api.bodies import limit_stalls
from api.ended_jobs import EndedJobs
from api.live_workers import LiveWorkers
from api.metrics import Metrics
from api.places import Places
from api.services import LARGE_BYTES, Services
from api.views import (
    batches,
    dashboard,
    docs,
    embeddings,
    events,
    files,
    health,
    jobs,
    maps,
    metrics,
    models,
    queues,
    results,
    webhooks,
)
from api.wakes import Wakes
from api.webhooks import Webhooks
from core.config import Settings
from core.ledger import Batches, Deliveries, Files, Ledger, open_ledger
from core.models import Models
from core.queues import create_celery, send_embed_pending

REDIS_TIMEOUT_SECONDS = 0.8
"""How long one answer of Redis may take: a client must hear of a dead Redis within a second."""

MOST_LARGE_BODIES = 4
"""JSON bodies that are made objects of at a time, if they are large: each takes several times its bytes."""

MOST_TABLES = 8
"""Results that are written as tables at a time; pyarrow needs some 30 MB for each, where the other formats need one."""

STORE_TIMEOUT_SECONDS = 5.0
"""How long reading one object of the result store may take, if there is one."""


def create_app(settings: Settings | None = None, ledger: Ledger | None = None, celery: Celery | None = None) -> Flask:
    """The WSGI application. What is not passed in is made from the environment's settings.

    Raises:
        InvalidSetting: a setting, a file that one of them names, or an encoding of token ids cannot be used.
    """
    settings = settings or Settings.from_env()
    if ledger is None:
        ledger = open_ledger(settings, timeout_seconds=REDIS_TIMEOUT_SECONDS, retries=1, store_seconds=STORE_TIMEOUT_SECONDS)
    served = Models.of(settings)
    token_ids.load_all(served)
    sender = celery or create_celery(settings, served.queues)
    senders = Webhooks.of(settings, Deliveries(ledger))
    app = Flask("api", static_folder=None)
    shown = Metrics(ledger, settings, served.queues)
    app.extensions["services"] = Services(
        settings=settings,
        ledger=ledger,
        models=served,
        workers=LiveWorkers(ledger),
        wakes=Wakes(lambda queue: send_embed_pending(sender, queue)),
        ended=EndedJobs(ledger, most_waiting=max(1, settings.api_threads // 2), most_streams=max(1, settings.api_threads // 4)),
        answered=AnsweredJobs(ledger),
        tables=Places(MOST_TABLES, "results in the formats arrow and parquet"),
        maps=Places(1, "maps"),
        large_bodies=Places(MOST_LARGE_BODIES, f"JSON bodies of more than {LARGE_BYTES} bytes"),
        measuring=Places(1, "lists of files that have to measure some"),
        files=Files(ledger),
        batches=Batches(ledger),
        webhooks=senders,
        metrics=shown,
    )
    requests.register(app, shown)
    errors.register(app)
    app.after_request(add_security_headers)
    app.before_request(lambda: limit_stalls(request))
    app.before_request(senders.start)  # a server of another kind than ours does not start them
    access.guard(app, settings, ledger)
    for resource in (
        jobs,
        results,
        maps,
        events,
        embeddings,
        files,
        batches,
        webhooks,
        queues,
        models,
        health,
        metrics,
        docs,
        dashboard,
    ):
        app.register_blueprint(resource.views)
    return app

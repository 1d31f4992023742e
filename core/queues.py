"""The Celery app and what travels through it: one task name and two queues. Cheap to import."""

import ssl
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from celery import Celery
from kombu.entity import Queue

from core.config import Settings
from core.routing import QUEUES
from core.sentinel import SentinelUrl

EMBED_PENDING = "embed_pending"
"""The task that drains a queue; its only argument is the queue's name. A message may be lost or doubled without harm."""


TASK_HANGS = 10
"""Celery ends a task after so many times `HANG_SECONDS`, in case it hangs where the watchdog of engine calls does not look."""

TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def create_celery(settings: Settings) -> Celery:
    """The Celery app of the API (which sends) and of the workers (which receive)."""
    app = Celery("vector-api", set_as_current=False)
    url, options = broker(settings)
    app.conf.update(
        broker_url=url,
        broker_transport_options=options,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_publish_retry_policy={"max_retries": 2, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.3},
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,  # safe: attempts are counted by the ledger
        task_time_limit=int(settings.drain_seconds + TASK_HANGS * settings.hang_seconds),
        task_queues=[Queue(name, routing_key=name) for name in QUEUES],  # type: ignore[no-untyped-call]
        task_create_missing_queues=False,
        task_default_queue="cpu",
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_proc_alive_timeout=600,  # the 4 s default kills a replacement child while it loads the model
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_enable_remote_control=True,
    )
    if url.startswith("rediss://"):
        app.conf.broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True} | _tls_files(
            settings.redis_url
        )
    return app


def broker(settings: Settings) -> tuple[str, dict[str, Any]]:
    """Celery's broker URL and transport options for the ledger's Redis."""
    url, more = settings.redis_url, {}
    if sentinel := SentinelUrl.parse(url):
        url, more = sentinel.broker_url(), {"master_name": sentinel.master}
    elif url.startswith("unix://"):
        path, _, query = url.removeprefix("unix://").partition("?")
        database = dict(part.split("=") for part in query.split("&") if "=" in part).get("db", "0")
        url = f"redis+socket://{path}?virtual_host={database}"
    elif url.startswith("rediss://"):
        url = url.partition("?")[0]
    return url, {
        "global_keyprefix": f"{settings.redis_prefix}celery:",
        "visibility_timeout": 600,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "priority_steps": [0],
        "socket_connect_timeout": 2,
        "socket_timeout": 15,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "client_name": "vector-api",
        **more,
    }


def _tls_files(url: str) -> dict[str, str]:
    """Certificates and keys that the URL names, as redis-py takes them."""
    return {name: value for name, value in parse_qsl(urlsplit(url).query) if name in TLS_FILES}


def send_embed_pending(app: Celery, queue: str) -> None:
    """Wake a worker of the queue."""
    app.send_task(EMBED_PENDING, args=[queue], queue=queue, ignore_result=True)

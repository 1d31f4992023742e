"""`vector-api embed --dry-run`: what the file would cost, without a vector computed or a file written."""

from collections.abc import Mapping
from typing import Any

from vector_api_client.cli.embedding import at_its_line, send
from vector_api_client.cli.following import DONE
from vector_api_client.cli.order import Order
from vector_api_client.cli.screen import Screen
from vector_api_client.cli.source import read_source
from vector_api_client.client import Client
from vector_api_client.errors import Refused
from vector_api_client.records import Job


def rehearse(order: Order, quick: Client, client: Client, screen: Screen) -> int:
    """Print the figures. Returns the exit code. The two clients are those of `embed`.

    Raises:
        VectorApiError: what the caller shall show.
        KeyboardInterrupt: the count is cancelled.
    """
    source = read_source(order, screen)
    try:
        quick.queues()
        with screen.stage("sending", source.inputs.size_bytes, unit="bytes") as stage:
            job = send(source, client, stage, dry_run=True, **order.options)
        with screen.stage("counting", job.total) as stage:
            try:
                job = client.wait(job, on_progress=lambda found: stage.set(found.done + found.failed))
            except KeyboardInterrupt:
                client.cancel(job)
                raise
    except Refused as error:
        raise at_its_line(error, order, source) from None
    finally:
        source.close()
    for name, value in _lines(job, job.dry_run or {}):
        print(f"{name:12}{value}")
    return DONE


def _lines(job: Job, figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    size_bytes, seconds, before = figures.get("bytes"), figures.get("seconds"), figures.get("backlog_seconds")
    duplicates = figures.get("duplicates")
    vectors = "unknown" if size_bytes is None else f"{size_bytes:,} bytes"
    took = "unknown: no worker has measured its speed yet" if seconds is None else f"about {seconds:,.0f} s"
    waits = f", after about {before:,.0f} s for what waits before" if seconds is not None and before else ""
    lines = [
        ("texts", f"{job.total:,}"),
        ("tokens", f"{job.tokens:,}"),
        ("over-long", f"{figures.get('over_long', 0):,}"),
        ("duplicates", "unknown" if duplicates is None else f"{duplicates:,}"),
        *([("cached", f"{cached:,}")] if (cached := figures.get("cached")) else []),
        ("vectors", vectors),
        ("time", took + waits),
    ]
    return [*lines, *([("would fail", f"{job.failed:,}: {job.errors[0].message}")] if job.errors else [])]

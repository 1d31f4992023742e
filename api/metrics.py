"""What `/metrics` shows: the ledger and the workers' reports, read when it is asked, and the requests of this process.

Every API process shows the same of the ledger and the workers, so these are not to be added up over processes; requests and
`process_…` are each process's own. docs/metrics.md lists all of them, and a test compares it.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from core.config import Settings
from core.errors import LedgerUnavailable
from core.jobs import JobStatus
from core.ledger import Ledger, QueueState, Survey, Worker

log = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PREFIX = "vector_api_"

REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
disable_created_metrics()  # type: ignore[no-untyped-call]  # a further series for each of our own, which nobody reads

Row = tuple[Sequence[str], float | None]
"""Values of the labels, and what is shown for them; None is not shown."""


class Metrics:
    """The metrics of one application."""

    def __init__(self, ledger: Ledger, settings: Settings, queues: Sequence[str]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(Figures(ledger, settings, queues))
        self._requests = Counter(
            f"{PREFIX}http_requests",
            "Requests that were answered, by the path's pattern and the answer's status.",
            ("method", "endpoint", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            f"{PREFIX}http_request_seconds",
            "Time from a request's head to its answer; to the end of an answer that is sent as it is made.",
            ("method", "endpoint"),
            buckets=REQUEST_SECONDS,
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)

    def count(self, method: str, endpoint: str, status: int, seconds: float) -> None:
        """A request that was answered."""
        self._requests.labels(method, endpoint, str(status)).inc()
        self._seconds.labels(method, endpoint).observe(seconds)

    def exposition(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)


class Figures(Collector):
    """What Redis holds, and what is to be compared with it."""

    def __init__(self, ledger: Ledger, settings: Settings, queues: Sequence[str]) -> None:
        self._ledger = ledger
        self._settings = settings
        self._queues = queues

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask Redis."""
        return ()

    def collect(self) -> Iterator[Metric]:
        found = list[Metric]()
        try:
            survey = self._ledger.survey(self._queues)
            found += [*of_ledger(survey), *of_redis(*self._ledger.memory()), *of_workers(survey.workers)]
        except LedgerUnavailable as error:
            log.warning("metrics without what is in Redis: %s", error)
        yield gauge("redis_up", "Whether Redis answers; where it is 0 all that is in Redis is missing here.", bool(found))
        yield from of_settings(self._settings)
        yield from found


# Families -------------------------------------------------------------------------------------------------------------


def gauge(name: str, text: str, value: float | None) -> Metric:
    return gauges(name, text, (), [((), value)])


def gauges(name: str, text: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    return _filled(GaugeMetricFamily(PREFIX + name, text, labels=labels), rows)


def counters(name: str, text: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    """Its name is shown with `_total` behind it."""
    return _filled(CounterMetricFamily(PREFIX + name, text, labels=labels), rows)


def _filled(family: Any, rows: Iterable[Row]) -> Metric:
    for values, value in rows:
        if value is not None:
            family.add_metric(values, value)
    return family  # type: ignore[no-any-return]


def histograms(
    name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], Mapping[str, Any] | None]]
) -> Metric:
    """Of the reports that `worker.histograms` makes."""
    family = HistogramMetricFamily(PREFIX + name, text, labels=labels)
    for values, found in rows:
        if found is not None:
            bounds = [_bound(bound) for bound in (*found["bounds"], math.inf)]
            family.add_metric(values, list(zip(bounds, found["counts"], strict=True)), found["sum"])
    return family


def _bound(value: float) -> str:
    shown: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return shown


# Settings -------------------------------------------------------------------------------------------------------------


def of_settings(settings: Settings) -> Iterator[Metric]:
    yield gauge("max_waiting_bytes", "Bytes of inputs that Redis may hold (MAX_WAITING_BYTES).", settings.max_waiting_bytes)
    yield gauge("max_waiting_inputs", "Inputs that may wait in all queues (MAX_WAITING_INPUTS).", settings.max_waiting_inputs)
    if settings.parity:
        yield gauge("parity_floor", "The worst parity with which a worker starts (PARITY_FLOOR).", settings.parity_floor)


# The ledger -----------------------------------------------------------------------------------------------------------

LANE = ("queue", "lane")
QUEUE = ("queue",)

PER_QUEUE = {
    "jobs_submitted": ("submitted", "Jobs that were accepted for the queue."),
    "inputs_finished": (
        "finished",
        "Inputs that were done with: embedded, failed, or counted in a dry run.",
    ),
    "inputs_embedded": ("inputs", "Inputs that have got a vector, computed or from the cache."),
    "tokens_embedded": ("tokens", "Tokens of the inputs that were done with, special tokens and prompts included."),
    "inputs_cached": ("cached", "Inputs whose vectors came from the cache."),
    "inputs_truncated": ("truncated", "Inputs that were longer than the model's maximum and were cut."),
    "shards_retried": ("retried", "Shards that were handed out again: a worker had died with them, or had given them back."),
    "shards_hung": ("hung", "Shards that were alone with a worker whose engine did not come back from them."),
    "hangs": ("hangs", "Processes of workers that were ended as their engine did not come back."),
    "shards_divided": ("divided", "Shards that workers died with, divided into their inputs."),
    "commits_refused": (
        "refused",
        "Results of shards that were thrown away: cancelled, or the lease had gone to another worker.",
    ),
    "jobs_moved": ("moved", "Jobs that came from the model's other queue, as workers live here and not there, or on gpu again."),
}
"""Counters with the label `queue`: what they are called in the ledger, and what they mean."""

POISON = ("worker_died", "worker_hung")
"""Codes of inputs that ended their workers. They are shown before there are any, as Prometheus sees no increase in a counter that
comes with its first one; and of these the first one counts."""


def of_ledger(survey: Survey) -> Iterator[Metric]:
    yield from _of_queues(survey.queues)
    yield gauge("waiting_bytes", "Bytes of inputs that Redis holds until their vectors are stored.", survey.waiting_bytes)
    jobs = [([state], n) for state, n in survey.jobs.items()]
    yield gauges("jobs", "Jobs that have not ended.", ("state",), jobs)
    yield gauge("kept_jobs", "Ended jobs whose results are kept, and batches whose file could not be embedded.", survey.kept_jobs)
    yield from _totals(survey.counters, [state.name for state in survey.queues])


def of_redis(used_bytes: int | None, max_bytes: int | None) -> Iterator[Metric]:
    yield gauge("redis_memory_used_bytes", "Memory that Redis uses.", used_bytes)
    yield gauge("redis_memory_max_bytes", "Memory that Redis may use (its maxmemory).", max_bytes)


def _of_queues(queues: Sequence[QueueState]) -> Iterator[Metric]:
    waiting = [([state.name, lane], n) for state in queues for lane, n in state.waiting.items()]
    yield gauges("waiting_inputs", "Inputs that wait for a worker.", LANE, waiting)
    running = [([state.name, lane], n) for state in queues for lane, n in state.running_by_lane.items()]
    yield gauges("running_inputs", "Inputs that workers hold.", LANE, running)
    oldest = [([state.name, lane], state.oldest_by_lane.get(lane, 0.0)) for state in queues for lane in state.waiting]
    yield gauges("oldest_waiting_seconds", "Age of the oldest job that has inputs waiting; 0 without one.", LANE, oldest)
    suspects = [([state.name], state.suspects) for state in queues]
    yield gauges("suspect_shards", "Shards that wait to be tried alone, as a worker died while it held them.", QUEUE, suspects)
    yield gauges(
        "workers", "Workers that live, by each queue they take from.", QUEUE, [([q.name], len(q.workers)) for q in queues]
    )


def _totals(found: Mapping[str, int], queues: Sequence[str]) -> Iterator[Metric]:
    for name, (field, text) in PER_QUEUE.items():
        yield counters(name, text, QUEUE, [([queue], found.get(f"{field}:{queue}", 0)) for queue in queues])
    failed = {f"failed:{queue}:{code}": 0 for queue in queues for code in POISON}
    failed |= {name: n for name, n in found.items() if name.startswith("failed:")}
    yield counters(
        "inputs_failed",
        "Inputs that have no vector, by the code of the error.",
        ("queue", "code"),
        [(name.split(":")[1:], n) for name, n in sorted(failed.items())],
    )
    ended = [([status.value], found.get(f"ended:{status.value}", 0)) for status in JobStatus if status.ended]
    yield counters("jobs_ended", "Jobs that have ended.", ("state",), ended)
    text = "Shards whose worker did not renew its lease, or hung: it died, stood still, or could not reach Redis."
    yield counters("shards_recovered", text, (), [((), found.get("recovered", 0))])


# Workers --------------------------------------------------------------------------------------------------------------

WORKER = ("worker",)
DEVICE = ("worker", "device")

FACTS = {
    "resident_memory_bytes": ("resident_bytes", "Memory of the worker's process that lies in RAM."),
    "memory_used_bytes": ("memory_used_bytes", "Main memory that is used in the worker's container, or on its machine."),
    "memory_limit_bytes": ("memory_limit_bytes", "What that may be at most."),
    "budget_tokens": ("budget_tokens", "Most tokens in a batch at the moment, padding included."),
}
DEVICE_FACTS = {
    "allocated_bytes": ("memory_allocated_bytes", "Memory of the device that the worker's tensors take."),
    "reserved_bytes": ("memory_reserved_bytes", "Memory of the device that torch has taken, used or not."),
    "used_bytes": ("memory_used_bytes", "Memory of the device that is used, by whichever process."),
    "total_bytes": ("memory_total_bytes", "Memory of the device."),
    "utilization_ratio": ("utilization_ratio", "Share of the last moment in which the device computed anything at all."),
    "temperature_celsius": ("temperature_celsius", "Temperature of the card."),
    "power_watts": ("power_watts", "Power that the card draws."),
}
TOTALS = {
    "inputs": ("inputs", "Inputs, and parts of long ones, that went through the model."),
    "batches": ("batches", "Batches that went through the model."),
    "tokens": ("tokens", "Tokens of these batches, padding left out."),
    "padding_tokens": ("padding_tokens", "Padding of these batches."),
    "out_of_memory": ("out_of_memory", "Batches that the device had too little memory for; they were halved and tried again."),
    "torch_alloc_retries": ("torch_alloc_retries", "Allocations that torch tried again after it gave cached memory back."),
    "torch_ooms": ("torch_ooms", "Allocations that torch could not make."),
}
LABELLED_HISTOGRAMS = {
    "wait_seconds": ("lane", "How long jobs waited, from their creation to the claim of their first shard."),
    "stage_seconds": (
        "stage",
        "How long a stage took: tokenize, the inputs of a claim; forward, a batch on the device; commit, storing what is whole.",
    ),
}
HISTOGRAMS = {
    "batch_inputs": "Inputs of a batch.",
    "batch_tokens": "Tokens of a batch, padding left out.",
    "batch_padding_ratio": "Share of padding in all tokens of a batch.",
}


def of_workers(workers: Sequence[Worker]) -> Iterator[Metric]:
    yield gauges(
        "worker_info",
        "What a worker is: always 1.",
        ("worker", "queues", "model", "revision", "engine", "device", "device_name", "dtype"),
        [([w.name, ",".join(w.queues), w.model, w.revision, w.engine, w.device, w.device_name, w.dtype], 1) for w in workers],
    )
    yield gauges(
        "worker_busy", "Whether the worker works through a queue.", WORKER, [([w.name], w.state == "busy") for w in workers]
    )
    yield gauges(
        "worker_parity",
        "Worst cosine of the worker's vectors with those of float32 torch, measured at its start.",
        WORKER,
        [([w.name], w.parity) for w in workers],
    )
    text = "When the worker reported last, by Redis' clock."
    yield gauges("worker_last_report_timestamp_seconds", text, WORKER, [([w.name], w.seen_at) for w in workers])
    for name, (fact, text) in FACTS.items():
        yield gauges(f"worker_{name}", text, WORKER, [([w.name], w.facts.get(fact)) for w in workers])
    for fact, (name, text) in DEVICE_FACTS.items():
        yield gauges(f"worker_device_{name}", text, DEVICE, [([w.name, w.device], w.facts.get(fact)) for w in workers])
    for fact, (name, text) in TOTALS.items():
        yield counters(f"worker_{name}", text, WORKER, [([w.name], w.facts.get(fact)) for w in workers])
    yield from _histograms(workers)


def _histograms(workers: Sequence[Worker]) -> Iterator[Metric]:
    for name, (label, text) in LABELLED_HISTOGRAMS.items():
        rows = [((worker.name, value), found) for worker in workers for value, found in worker.histograms.get(name, {}).items()]
        yield histograms(f"worker_{name}", text, ("worker", label), rows)
    for name, text in HISTOGRAMS.items():
        yield histograms(f"worker_{name}", text, WORKER, [([worker.name], worker.histograms.get(name)) for worker in workers])

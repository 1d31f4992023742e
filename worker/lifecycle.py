"""What happens when a worker's processes start and stop.

The parent answers `inspect`, forks one child, and looks every few seconds for work that nobody was told of. The child
loads the model, reports itself to the ledger, and works. On macOS, where a fork does not go with Metal, both are one process
(the threads pool).
"""

import logging
import mmap
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from billiard.process import current_process
from celery import bootsteps
from celery.apps import worker as celery_program
from celery.signals import (
    celeryd_init,
    setup_logging,
    worker_init,
    worker_process_init,
    worker_process_shutdown,
    worker_shutdown,
    worker_shutting_down,
)
from celery.utils.log import get_multiprocessing_logger
from celery.utils.text import str_to_list
from celery.worker import state

from core import logs, tracing
from core.config import Settings
from core.errors import EngineError, InvalidSetting, LedgerUnavailable, NewerLayout, ResultStoreRefuses, ResultStoreUnavailable
from core.ledger import Ledger, Worker, connect
from core.models import Model
from core.queues import send_embed_pending
from core.result_store import ResultStore
from core.routing import FALLBACK
from worker import app, models, settings, watchdog
from worker.engines import Engine
from worker.log import log
from worker.memory import main_memory
from worker.result_store import Collector, Outage, WorkerLedger

WORKER_TIMEOUT_SECONDS = 15.0
WORKER_RETRIES = 20
"""A worker sits out a restart of Redis: with waits of up to half a second, about ten seconds."""

STORE_TIMEOUT_SECONDS = 10.0
STORE_RETRIES = 2

ASK_TIMEOUT_SECONDS = 2.0

CANNOT_START = 3
"""Exit code of a worker that has no model, or nowhere to put results, or whose Redis holds a newer layout of the ledger."""

_shared = mmap.mmap(-1, 2)
"""Two bytes shared by the parent and its children: whether the worker was told to stop, and whether a child cannot start."""
_STOPPING, _FAILED = 0, 1

_node_name = ""
_model = models.default


def load_engine(settings: Settings) -> Engine:
    """The engine of this process. Its module brings torch, which only this process may import."""
    # Threads that wait for each other sleep instead of spinning, which stalls a forward pass when another process wants one of
    # its CPUs. OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from worker.engines import loading

    logs.adopt_loggers()  # torch, transformers and huggingface_hub have a format each
    engine = loading.load_engine(settings)
    logs.adopt_loggers()
    return engine


class Process:
    """The process that holds the model: its engine, its way to the ledger, its report."""

    def __init__(self, engine: Engine, name: str, queues: tuple[str, ...]) -> None:
        self.name = name
        self.queues = queues
        self.queue = ""
        self.engine = engine
        from worker.drain import Drain  # brings numpy, which the parent and `inspect` can do without

        self._outage: Outage | None = None
        self.ledger = (
            open_ledger(WORKER_TIMEOUT_SECONDS, WORKER_RETRIES) if settings.result_store == "redis" else self._storing_ledger()
        )
        self._drain = Drain(
            engine,
            self.ledger,
            _own(settings),
            name,
            wake=lambda queue: send_embed_pending(app, queue),
            stopping=self._should_stop,
            linger_seconds=settings.linger_seconds if len(queues) == 1 else 0,  # the other queues are not to wait meanwhile
        )
        watchdog.start(settings.hang_seconds, ask_ledger)
        threading.Thread(target=self._keep_reporting, name="report", daemon=True).start()

    def drain(self, queue: str) -> None:
        self.queue = queue
        try:
            if self._outage is None or self._outage.sit_out(is_stopping):
                self._drain.run(queue)
        finally:
            self.queue = ""

    def _storing_ledger(self) -> Ledger:
        """Results go to `RESULT_STORE`. In this process only: what obstore starts does not survive a fork.

        Raises:
            ResultStoreRefuses: they never will.
        """
        store = ResultStore(settings.result_store, timeout_seconds=STORE_TIMEOUT_SECONDS, retries=STORE_RETRIES)
        client = connect(settings.redis_url, timeout_seconds=WORKER_TIMEOUT_SECONDS, retries=WORKER_RETRIES)
        ledger = WorkerLedger(client, settings.redis_prefix, store, min_bytes=settings.result_store_min_bytes)
        self._outage = ledger.outage
        try:
            store.probe()
        except ResultStoreRefuses:
            raise
        except ResultStoreUnavailable as error:
            ledger.outage.begin(error)
        Collector(ledger, settings.wake_seconds).start()
        return ledger

    def _should_stop(self) -> bool:
        return is_stopping() or (self._outage is not None and self._outage.began)

    def report(self) -> None:
        """Tell the ledger that this worker lives and what it is."""
        facts = self.engine.facts
        self.ledger.report(
            Worker(
                name=self.name,
                queues=self.queues,
                state="busy" if self._drain.busy else "idle",
                model=_model.name,
                revision=facts.revision,
                engine=facts.engine,
                device=facts.device,
                dtype=facts.dtype,
                dimensions=facts.dimensions,
                max_tokens=facts.max_tokens,
                prompts=tuple(facts.prompts),
                facts=main_memory() | self.engine.memory() | self.engine.device_figures() | self._drain.figures(),
                parity=facts.parity,
                device_name=facts.device_name,
                histograms=self._drain.histograms.report(),
            ),
            lifetime_seconds=3 * settings.heartbeat_seconds,
        )

    def _keep_reporting(self) -> None:
        pause = threading.Event()
        parent = os.getppid()
        while not is_stopping():
            _show_life(parent)
            try:
                self.report()
            except LedgerUnavailable as error:
                log.warning("could not report: %s", error)
            self._drain.cache.shrink()
            pause.wait(settings.heartbeat_seconds)


def _show_life(parent: int) -> None:
    """Touch `ALIVE_FILE`, unless the process that started this one has gone. Whether Redis answers makes no difference."""
    if settings.alive_file and os.getppid() == parent:
        try:
            Path(settings.alive_file).touch()
        except OSError as error:
            log.warning("ALIVE_FILE=%s cannot be touched: %s", settings.alive_file, error.strerror)


_process: Process | None = None
_loading = threading.Lock()


def process() -> Process:
    """This process with its model, loaded on the first call and once only."""
    global _process
    with _loading:
        if _process is None:
            engine = load_engine(_own(settings))
            index = getattr(current_process(), "index", 0)
            name = f"{_node_name}/{index}" if index else _node_name
            tracing.start(os.environ, "vector-api-worker", name, follows=True)
            _process = Process(engine, name, tuple(app.amqp.queues.consume_from))
        return _process


def _own(settings: Settings) -> Settings:
    """With the model of this worker as the default one."""
    return replace(settings, model_name=_model.name, model_revision=_model.revision)


def open_ledger(timeout_seconds: float, retries: int) -> Ledger:
    return Ledger(connect(settings.redis_url, timeout_seconds=timeout_seconds, retries=retries), settings.redis_prefix)


def ask_ledger() -> Ledger:
    """A ledger that is not waited for."""
    return open_ledger(ASK_TIMEOUT_SECONDS, 0)


def node_name() -> str:
    """This worker's Celery name, such as `cpu@host`; its children's names in the ledger start with it."""
    return _node_name


def ids() -> dict[str, str]:
    """Of this process, for records of the log: its name in the ledger, or the parent's, and the queue it is working for."""
    return {"worker": _node_name} if _process is None else {"worker": _process.name, "queue": _process.queue}


def model() -> Model:
    """The model of this worker, which follows from the queues it was started with."""
    return _model


def is_stopping() -> bool:
    return bool(_shared[_STOPPING])


@celeryd_init.connect
def _remember_name(sender: str, instance: Any, options: dict[str, Any], **_: Any) -> None:
    """Before anything is started; a worker whose queues are unknown or of several models ends here."""
    global _node_name, _model
    _node_name = sender
    _set_up_logging()  # for Celery's warnings, which come before it asks for that
    if logs.is_json(settings.log_format, sys.stderr):
        instance.quiet = True  # no banner
        celery_program.safe_say = _say_as_json
    taken = str_to_list(options.get("queues")) or list(models.queues)  # Celery takes from all when none is named
    left_out = str_to_list(options.get("exclude_queues")) or []
    try:
        _model = models.of_worker([queue for queue in taken if queue not in left_out])
    except InvalidSetting as error:
        sys.exit(f"vector-api: {error.message}")


def _say_as_json(message: str, *_: Any) -> None:
    """What Celery says when it gets a signal. Written at once, as Celery does: no record of the log is to interrupt another."""
    said = logging.LogRecord("celery.worker", logging.INFO, __file__, 0, message, None, None)
    said.__dict__ |= ids()
    os.write(2, f"{logs.JsonLines('worker').format(said)}\n".encode())


@setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    logs.set_up(settings, "worker", ids)
    get_multiprocessing_logger().propagate = True  # else what the pool says of a child that died is written as it is
    for chatty in ("httpx", "sentence_transformers", "celery.redirected", "celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _load_or_exit() -> None:
    """A worker without a model must not take work. Celery swallows what signal handlers raise, but for SystemExit.

    The pool would replace the child for ever, so the parent is told as well. A child that comes before the parent has noticed
    does not try again: importing torch takes seconds.
    """
    if _shared[_FAILED]:
        sys.exit(CANNOT_START)
    watchdog.forget()
    try:
        _require_known_layout()
        process()
        return
    except (EngineError, ResultStoreRefuses, NewerLayout) as error:
        log.critical("cannot start: %s", error.message)
    except Exception:
        log.critical("cannot start", exc_info=True)
    _shared[_FAILED] = 1
    sys.exit(CANNOT_START)


def _require_known_layout() -> None:
    """Raises NewerLayout; whether Redis can be reached does not matter yet."""
    try:
        ask_ledger().ping()
    except NewerLayout:
        raise
    except LedgerUnavailable as error:
        log.warning("Redis cannot be reached yet: %s", error)


@worker_process_init.connect
def _child_started(**_: Any) -> None:
    _load_or_exit()


@worker_init.connect
def _worker_started(sender: Any, **_: Any) -> None:
    if "prefork" not in sender.pool_cls.__module__:
        _load_or_exit()


@worker_process_shutdown.connect
def _child_stops(**_: Any) -> None:
    tracing.stop()


@worker_shutting_down.connect
def _told_to_stop(**_: Any) -> None:
    _shared[_STOPPING] = 1


@worker_shutdown.connect
def _stopped(sender: Any = None, **_: Any) -> None:
    if _shared[_FAILED]:
        sender.exitcode = CANNOT_START  # Celery may have noticed first that no child starts, and would exit with 1
    try:
        ledger = ask_ledger()
        for worker in ledger.workers():
            if worker.name.split("/")[0] == _node_name:
                ledger.retire(worker.name, worker.queues)
    except LedgerUnavailable as error:
        log.warning("could not say goodbye: %s", error)
    tracing.stop()  # of the threads pool


class LookForWork(bootsteps.StartStopStep):  # type: ignore[misc]
    """Sends `embed_pending` for work that waits while a worker is idle, every `wake_seconds`.

    This alone keeps work going: messages that Redis or a dying worker loses cost one round of it.
    """

    requires = ("celery.worker.components:Timer",)

    def __init__(self, parent: Any, **_: Any) -> None:
        self._timer: Any = None

    def start(self, parent: Any) -> None:
        ledger = ask_ledger()
        self._timer = parent.timer.call_repeatedly(settings.wake_seconds, self._look, (ledger,))

    def stop(self, parent: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, ledger: Ledger) -> None:
        if _shared[_FAILED]:
            state.should_stop = CANNOT_START
        if is_stopping():
            return
        try:
            self._move(ledger)
            for queue in app.amqp.queues.consume_from:
                if ledger.wants_wake(queue):
                    send_embed_pending(app, queue)
        except NewerLayout as error:
            log.critical("stopping: %s", error.message)
            state.should_stop = CANNOT_START
        except Exception as error:  # Redis is away; the next round asks again
            log.debug("could not look for work: %s", error)

    def _move(self, ledger: Ledger) -> None:
        """Take work that may go to either queue to where workers live. A long backlog takes several rounds: `inspect` waits."""
        deadline = time.monotonic() + settings.wake_seconds / 4
        while ledger.move(_node_name, _model.queue(FALLBACK)) and time.monotonic() < deadline:
            pass


class EndHungChild(bootsteps.StartStopStep):  # type: ignore[misc]
    """Ends a child whose engine hangs so that none of its own threads can."""

    requires = ("celery.worker.components:Timer",)

    def __init__(self, parent: Any, **_: Any) -> None:
        self._timer: Any = None

    def start(self, parent: Any) -> None:
        pause = min(settings.wake_seconds, settings.hang_seconds / watchdog.LOOKS)
        self._timer = parent.timer.call_repeatedly(pause, watchdog.end_hung_child, (settings.hang_seconds, ask_ledger))

    def stop(self, parent: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()


app.steps["worker"].add(LookForWork)
app.steps["worker"].add(EndHungChild)

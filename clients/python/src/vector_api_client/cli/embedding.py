"""`vector-api embed`: read a file, send it as one job, write its vectors as they come, and go on after any interruption."""

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO

from vector_api_client.cli.following import DONE, Follower, counted, gone
from vector_api_client.cli.order import Order
from vector_api_client.cli.readers import STANDARD_INPUT, BadFile
from vector_api_client.cli.screen import Screen, Stage
from vector_api_client.cli.source import Source, read_source
from vector_api_client.cli.state import State
from vector_api_client.cli.writers import writer_for
from vector_api_client.client import Client
from vector_api_client.errors import NotFound, Refused, VectorApiError
from vector_api_client.records import Job


def embed(order: Order, quick: Client, client: Client, screen: Screen) -> int:
    """Do it. Returns the exit code: 3 when some inputs have no vector.

    Args:
        quick: a client that gives up soon; asked first, so that a wrong address is told at once.
        client: a patient one, for what must not fail because the service is away for a while.

    Raises:
        VectorApiError: what the caller shall show.
        KeyboardInterrupt: the job, if there is one, goes on; the screen says how to go on with it.
    """
    make_writer = writer_for(order.output)
    if not order.output.parent.is_dir():
        raise BadFile(f"there is no folder {order.output.parent} for the output")
    state = None if order.overwrite else State.load(order.state_file)
    _require_free(order, state)
    source = read_source(order, screen)
    try:
        if state is None:
            state = State(client.base_url, source.inputs.digest(), uuid.uuid4().hex, options=order.options)
        else:
            _require_same(state, order, source, client)
        quick.queues()  # whoever is refused shall know before the file is sent
        with _part_of(order) as part:
            job = _job(order, state, source, client, screen)
            if not order.wait:
                screen.say(f"job {job.id} is accepted. The same command without --no-wait fetches its vectors.")
                print(job.id)
                return DONE
            if part.seek(0, os.SEEK_END) < state.part_bytes or not order.errors_file.exists():
                state.forget_rows()
            part.truncate(state.part_bytes)
            part.seek(state.part_bytes)
            with _errors_of(order, state, source) as errors:
                writer = make_writer(part, rows=state.rows, dimensions=state.dimensions)
                return Follower(order, state, source, client, screen, writer, errors).run(job)
    finally:
        source.close()


def _require_free(order: Order, state: State | None) -> None:
    """Raises BadFile when a file that would be written is the input, or is there and not of an earlier run of ours."""
    for file in (order.output, order.errors_file, order.part_file, order.state_file):
        if not file.exists():
            continue
        if order.file != STANDARD_INPUT and os.path.exists(order.file) and file.samefile(order.file):
            raise BadFile(f"{file} is the input, and -o {order.output} would write to it")
        if state is None and not order.overwrite:
            raise BadFile(f"{file} exists; --overwrite replaces it")


def _require_same(state: State, order: Order, source: Source, client: Client) -> None:
    """Raises BadFile when the state belongs to something else."""
    what = f"an earlier run for {order.output} is unfinished" + (f" (job {state.job})" if state.job else "")
    ways = "--overwrite starts anew" + (f"; vector-api cancel {state.job} stops the job" if state.job else "")
    if state.inputs_digest != source.inputs.digest():
        raise BadFile(f"{what}, and {order.name} has changed since, or is read in another way; {ways}")
    if state.options != order.options:
        names = sorted(set(state.options.items()) ^ set(order.options.items()))
        raise BadFile(f"{what}, and was sent with other options ({', '.join(sorted({name for name, _ in names}))}); {ways}")
    if state.url != client.base_url:
        raise BadFile(f"{what} at {state.url}, not at {client.base_url}; use that --url, or --overwrite starts anew")


def _job(order: Order, state: State, source: Source, client: Client, screen: Screen) -> Job:
    """The job of this run: that of an earlier one, or a new one."""
    if state.job is not None:
        try:
            job = client.show(state.job)
        except NotFound:
            raise gone(state.job, order) from None
        screen.say(f"going on with job {job.id}: {state.rows:,} of {source.rows.count:,} are in {order.part_file}")
        return job
    state.save(order.state_file)
    try:
        with screen.stage("sending", source.inputs.size_bytes, unit="bytes") as stage:
            job = send(source, client, stage, idempotency_key=state.idempotency_key, **order.options)
    except Refused as error:
        if 400 <= error.status < 500:  # else the job may have been accepted all the same, and its key must not be lost
            order.state_file.unlink()
        raise at_its_line(error, order, source) from None
    except KeyboardInterrupt:
        screen.warn("\ninterrupted while the file was sent. The same command sends it again, and makes one job in any case.")
        raise
    state.job = job.id
    state.save(order.state_file)
    bad = f", without {counted(source.bad, f'bad {order.unit}')}" if source.bad else ""
    screen.say(f"job {job.id}: {counted(job.total, 'text')}{bad}, queue {job.queue}, model {job.model}")
    return job


def send(source: Source, client: Client, stage: Stage, **options: Any) -> Job:
    """The job of a file. `options` are those of `Client.submit`."""
    size_bytes = source.inputs.size_bytes
    return client.submit(
        source.inputs,
        on_sent=lambda size: stage.set(min(size_bytes, stage.done % size_bytes + size)),  # from 0 again when it is repeated
        **options,
    )


def at_its_line(error: Refused, order: Order, source: Source) -> VectorApiError:
    """The service counts the lines it was sent; say which line of the file it means."""
    found = re.fullmatch(r"line (\d+)", error.param or "")
    if found is None:
        return error
    line = source.rows.line_of(int(found[1]) - 1)
    told = re.sub(rf"^line {found[1]}:? ?", "", error.message)
    return BadFile(f"{order.name} {order.unit} {line:,} is refused by the service: {told}; nothing was accepted")


@contextlib.contextmanager
def _part_of(order: Order) -> Iterator[BinaryIO]:
    """The part file, for this process alone where the system knows locks. One in which nothing was written does not stay."""
    with open(order.part_file, "r+b" if order.part_file.exists() else "w+b") as part:
        try:
            import fcntl

            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except OSError:
            raise BadFile(f"another vector-api embed is writing {order.output}") from None
        try:
            yield part
        finally:
            if order.part_file.exists() and not order.part_file.stat().st_size:
                order.part_file.unlink()


@contextlib.contextmanager
def _errors_of(order: Order, state: State, source: Source) -> Iterator[BinaryIO]:
    """The errors file, at the place where this run writes on. An empty one does not stay."""
    with open(order.errors_file, "r+b" if state.rows else "w+b") as errors:
        if state.rows:
            errors.truncate(state.error_bytes)
            errors.seek(state.error_bytes)
        else:
            source.problems.seek(0)
            shutil.copyfileobj(source.problems, errors)
        try:
            yield errors
        finally:
            errors.flush()
            if not errors.tell() and not order.part_file.exists():
                order.errors_file.unlink()

"""The command `vector-api`."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from vector_api_client.cli.doctor import examine
from vector_api_client.cli.embedding import embed
from vector_api_client.cli.keys import make_key
from vector_api_client.cli.order import Order
from vector_api_client.cli.readers import FORMATS as INPUT_FORMATS
from vector_api_client.cli.readers import BadFile, Columns
from vector_api_client.cli.rehearsal import rehearse
from vector_api_client.cli.screen import Screen
from vector_api_client.client import DEFAULT_URL, Client
from vector_api_client.errors import BacklogFull, BadInput, BadSetting, NotFound, Unauthorized, Unavailable, VectorApiError
from vector_api_client.records import Job

WRONG, BAD_INPUT, UNREACHABLE, INTERRUPTED = 1, 2, 4, 130

QUICK_RETRY_SECONDS = 2.0
LONG_RETRY_SECONDS = 600.0
"""How long `embed` waits for a service that has gone away, once it has a job."""

OUTAGE_SECONDS = 30.0
MOST_LISTED = 20

app = typer.Typer(
    name="vector-api",
    help="Turn texts into embedding vectors with a vector-api. It is found by VECTOR_API_URL and asked with VECTOR_API_KEY.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys_app = typer.Typer(help="API keys, made without a service.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

Url = Annotated[
    str, typer.Option("--url", envvar="VECTOR_API_URL", help="Where the service is.", show_default=True, metavar="URL")
]
AsJson = Annotated[bool, typer.Option("--json", help="Show what the service says, as JSON.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, such as job_c3e303a8…")]


def main() -> None:
    """Run the command. Every error of ours is told in a few lines, with an exit code that is not 0."""
    screen = Screen()
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except VectorApiError as error:
        screen.fail(error.message)
        if hint := _hint(error):
            screen.say(f"  {hint}")
        sys.exit(_exit_code(error))
    except OSError as error:
        screen.fail(f"{error.filename or 'a file'}: {error.strerror or error}")
        sys.exit(WRONG)


def _exit_code(error: VectorApiError) -> int:
    if isinstance(error, BadFile | BadInput | BadSetting):
        return BAD_INPUT
    return UNREACHABLE if isinstance(error, Unavailable) else WRONG


def _hint(error: VectorApiError) -> str:
    match error:
        case Unauthorized():
            return "set VECTOR_API_KEY to a key of this service"
        case Unavailable():
            return "vector-api doctor looks into it; what was accepted is safe, and the same command goes on with it"
        case BacklogFull():
            after = f" after {error.retry_after_seconds:.0f} s" if error.retry_after_seconds else " later"
            return f"nothing was accepted; try again{after}"
        case _:
            return ""


def _client(url: str, *, retry_seconds: float = QUICK_RETRY_SECONDS, screen: Screen | None = None) -> Client:
    return Client(url, retry_seconds=retry_seconds, on_retry=_outage_teller(screen) if screen else lambda error, pause: None)


def _outage_teller(screen: Screen) -> Callable[[VectorApiError, float], None]:
    last = -OUTAGE_SECONDS

    def tell(error: VectorApiError, pause: float) -> None:
        nonlocal last
        if time.monotonic() - last > OUTAGE_SECONDS:
            screen.warn(f"{error.message}; trying again for {LONG_RETRY_SECONDS / 60:.0f} minutes")
        last = time.monotonic() + pause

    return tell


# embed ----------------------------------------------------------------------------------------------------------------


@app.command("embed")
def embed_command(
    file: Annotated[str, typer.Argument(help="JSONL, CSV, Parquet, or a text with one passage a line; - is the standard input.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="What to write: .npy, .jsonl or .parquet.", dir_okay=False)],
    url: Url = DEFAULT_URL,
    input_format: Annotated[
        str | None, typer.Option("--format", help=f"What FILE is, if its name does not tell: {', '.join(INPUT_FORMATS)}.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column or key that holds the text; 'text' if there is one.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column or key that holds the id; 'id' if there is one.")] = None,
    queue: Annotated[str | None, typer.Option(help="cpu, gpu or auto.")] = None,
    model: Annotated[str | None, typer.Option(help="A model of `vector-api models`.")] = None,
    dimensions: Annotated[int | None, typer.Option(help="Keep the first so many numbers of each vector.", min=1)] = None,
    prompt_name: Annotated[str | None, typer.Option(help="Prompt of the model to put before each text, such as query.")] = None,
    truncate: Annotated[
        str | None, typer.Option(help="A text beyond the model's maximum: cut its end or start, chunk (embed all), or error.")
    ] = None,
    chunk_overlap: Annotated[
        int | None, typer.Option(help="With --truncate chunk: tokens that two chunks have in common.", min=0)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say tokens, duplicates, size and time, and write nothing.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Send, print the job's id, and end.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad lines without a vector.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew, whatever an earlier run left.")] = False,
) -> None:
    """Embed a file. The same command goes on after an interruption.

    Exit code 3: it is done, and some inputs have no vector; OUTPUT.errors.jsonl says why.
    """
    if input_format is not None and input_format not in INPUT_FORMATS:
        raise BadFile(f"--format must be one of {', '.join(INPUT_FORMATS)}, got {input_format!r}")
    given = {
        "queue": queue,
        "model": model,
        "dimensions": dimensions,
        "prompt_name": prompt_name,
        "truncate": truncate,
        "chunk_overlap": chunk_overlap,
    }
    order = Order(
        file=file,
        output=output,
        file_format=input_format,
        columns=Columns(column, id_column),
        options={name: value for name, value in given.items() if value is not None},
        wait=not no_wait,
        skip_bad=skip_bad,
        overwrite=overwrite,
    )
    screen = Screen()
    with _client(url) as quick, _client(url, retry_seconds=LONG_RETRY_SECONDS, screen=screen) as patient:
        try:
            code = rehearse(order, quick, patient, screen) if dry_run else embed(order, quick, patient, screen)
        except KeyboardInterrupt:
            code = INTERRUPTED
    raise typer.Exit(code)


# Jobs and the service -------------------------------------------------------------------------------------------------


@app.command("jobs")
def jobs_command(
    url: Url = DEFAULT_URL,
    status: Annotated[str | None, typer.Option(help="Only queued, running, succeeded, failed or cancelled ones.")] = None,
    limit: Annotated[int, typer.Option(help="How many, newest first.", min=1)] = MOST_LISTED,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with _client(url) as client:
        found = [job for job, _ in zip(client.jobs(status=status), range(limit), strict=False)]
    if as_json:
        _print_json(job.record for job in found)
    elif not found:
        print("no jobs")
    else:
        _print_table(("job", "status", "done", "failed", "queue", "created"), map(_job_row, found))


@app.command("show")
def show_command(job_id: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show a job."""
    with _client(url) as client:
        job = client.show(job_id)
    if as_json:
        _print_json([job.record])
    else:
        _print_job(job)


@app.command("cancel")
def cancel_command(job_id: JobId, url: Url = DEFAULT_URL) -> None:
    """Cancel a job. What it has finished stays readable."""
    with _client(url) as client:
        job = client.cancel(job_id)
    if job.status == "cancelled":
        print(f"{job.id} is cancelled, {job.done:,} of {job.total:,} have a vector")
    else:
        print(f"{job.id} was over before: {job.status}")


@app.command("delete")
def delete_command(job_id: JobId, url: Url = DEFAULT_URL) -> None:
    """Delete a job and its vectors; one that still runs is cancelled first."""
    with _client(url) as client:
        client.delete(job_id)
    print(f"{job_id} is deleted")


@app.command("queues")
def queues_command(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """What waits and runs in each queue, and who works there."""
    with _client(url) as client:
        found = client.queues()
    if as_json:
        _print_json([found])
    else:
        _print_table(("queue", "waiting", "running", "workers"), map(_queue_row, found["data"]))


@app.command("models")
def models_command(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """The models that are served."""
    with _client(url) as client:
        try:
            found = client.models()
        except NotFound:
            raise NotFound(f"{client.base_url} is too old to list its models; vector-api queues shows its workers") from None
    if as_json:
        _print_json(found)
    else:
        _print_table(("model", "dimensions", "max tokens", "live"), map(_model_row, found))


@app.command("doctor")
def doctor_command(url: Url = DEFAULT_URL) -> None:
    """Check the URL, the key, Redis and the workers, and send one text there and back."""
    with _client(url, retry_seconds=0) as client:
        for finding in examine(client):
            print(f"{'ok ' if finding.good else 'BAD'} {finding.text}")
            if not finding.good:
                print(f"    {finding.hint}")
                raise typer.Exit(WRONG)


@keys_app.command("new")
def new_key_command(name: Annotated[str, typer.Argument(help="The tenant: whose jobs are seen with the key.")]) -> None:
    """Make a key: prints it, and the line for the service's API_KEYS_FILE."""
    key, line = make_key(name)
    screen = Screen()
    screen.say(f"the key of {name}, shown this once:")
    print(key, flush=True)
    screen.say("its line for the file that API_KEYS_FILE names; the service reads it within a second:")
    print(line)


# Printing -------------------------------------------------------------------------------------------------------------


def _print_job(job: Job) -> None:
    took = f"{job.ended_at - job.started_at:.1f} s" if job.ended_at and job.started_at else ""
    facts = {
        "status": job.status,
        "inputs": f"{job.total:,}",
        "done": f"{job.done:,}",
        "failed": f"{job.failed:,}" if job.failed else "",
        "queue": job.queue,
        "model": job.model,
        "device": job.record.get("device"),
        "dimensions": job.dimensions,
        "tokens": f"{job.tokens:,}" if job.tokens else "",
        "truncated": f"{job.truncated:,}" if job.truncated else "",
        "created": _when(job.created_at),
        "took": took,
        "expires": _when(job.expires_at),
    }
    print(job.id)
    for name, value in facts.items():
        if value not in (None, ""):
            print(f"  {name:11}{value}")
    for error in job.errors[:MOST_LISTED]:
        print(f"  input {error.index}: {error.code}: {error.message}")


def _job_row(job: Job) -> tuple[str, ...]:
    failed = f"{job.failed:,}" if job.failed else ""
    return job.id, job.status, f"{job.done:,}/{job.total:,}", failed, job.queue, _when(job.created_at)


def _queue_row(queue: Mapping[str, Any]) -> tuple[str, ...]:
    workers = ", ".join(f"{worker['name']} ({worker.get('device') or 'loading'})" for worker in queue["workers"])
    return queue["name"], f"{sum(queue['waiting'].values()):,}", f"{queue['running']:,}", workers or "none"


def _model_row(model: Mapping[str, Any]) -> tuple[str, ...]:
    return model["id"], *(_cell(model.get(name)) for name in ("dimensions", "max_tokens", "live"))


def _when(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S") if seconds else ""


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case _:
            return str(value)


def _print_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Columns as wide as they need; a job's id is never cut or wrapped, whatever the width of the terminal."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_json(records: Iterable[Mapping[str, Any]]) -> None:
    """One record a line."""
    for record in records:
        print(orjson.dumps(record).decode())

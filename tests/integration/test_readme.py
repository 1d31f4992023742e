"""The README's commands, run as they stand there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.processes import ROOT, Stack

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("curl") is None and "CI" not in os.environ, reason="needs curl"),
]

README = (ROOT / "README.md").read_text(encoding="utf-8")
URL = "http://127.0.0.1:8000"
COMMANDS = [
    block for block in re.findall(r"^```sh\n(.+?)^```", README, re.MULTILINE | re.DOTALL) if URL in block or " inspect " in block
]


def test_commands_do_what_they_show(stack: Stack, tmp_path: Path) -> None:
    """In the README's order: a later command uses the job of an earlier one. A fake engine gives the vectors."""
    stack.api()
    stack.worker()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    binaries = Path(sys.executable).parent
    environ = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "REDIS_URL": stack.redis_url}
    assert len(COMMANDS) >= 9
    job, shown = "", []
    for block in COMMANDS:
        script = block.replace(URL, stack.base_url).replace(".venv/bin/", f"{binaries}/").replace("curl ", "curl -sS ")
        script = re.sub(r"^JOB=\S+", f"JOB={job}", script, flags=re.MULTILINE)
        found = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"JOB={job}\n{script}"],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert found.returncode == 0, f"{script}\n{found.stderr}"
        assert '{"error":{"message"' not in found.stdout or "inputs[1] is empty" in found.stdout, found.stdout
        shown.append(found.stdout)
        if '"source": "readme"' in block:
            job = json.loads(found.stdout)["id"]
    assert len(json.loads(shown[0])["data"]) == 1
    assert np.load(tmp_path / "vectors.npy").shape == (2, 8)
    assert f'{{"id":"{job}","object":"job","deleted":true}}' in "".join(shown)
    assert "inputs[1] is empty" in "".join(shown)


def test_answers_have_the_fields_that_are_shown(stack: Stack) -> None:
    """Each JSON answer in the README parses, and its first one has exactly the fields of a real one."""
    shown = [
        json.loads(block.replace(", …", "")) for block in re.findall(r"^```json\n(.+?)^```", README, re.MULTILINE | re.DOTALL)
    ]
    stack.api()
    body = '{"inputs": ["a text", {"id": "b", "text": "another"}], "metadata": {"source": "readme"}}'
    command = ["curl", "-sS", f"{stack.base_url}/v1/jobs", "-H", "Content-Type: application/json", "-d", body]
    real = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert list(shown[0]) == list(real)
    assert {name: shown[0][name] for name in ("status", "counts", "metadata")} == {
        name: real[name] for name in ("status", "counts", "metadata")
    }

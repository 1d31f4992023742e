"""What torch, transformers and huggingface_hub log in a worker."""

import json
import os
import subprocess
import sys

import pytest

from tests.processes import ROOT

pytestmark = [pytest.mark.model, pytest.mark.timeout(400)]

LIBRARIES = ("huggingface_hub.file_download", "torch", "torch._dynamo", "transformers.configuration_utils")

SCRIPT = f"""
import logging
from core import logs
from worker import lifecycle, settings

logs.set_up(settings, "worker")
lifecycle.load_engine(settings)
for name in {LIBRARIES}:
    logging.getLogger(name).warning("careful")
"""


def test_libraries_log_objects_of_json_once() -> None:
    """transformers leaves that to others where `CI` is set; users' machines have none."""
    environ = {name: value for name, value in os.environ.items() if name != "CI"} | {"HF_HUB_OFFLINE": "1", "DEVICE": "cpu"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["logger"] for line in lines if line["message"] == "careful"] == list(LIBRARIES)

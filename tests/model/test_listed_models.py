"""A model of MODELS_FILE, really loaded: by a worker of its queue, and with code of its own."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from core.config import Settings
from core.errors import ModelUnavailable
from core.ledger import Ledger
from tests.integration.test_worker import ended, submit
from tests.model.test_real_worker import vectors_of
from tests.model.test_torch_engine import worst_cosine
from tests.model.tiny import tiny_model
from tests.processes import Stack

pytestmark = [pytest.mark.model, pytest.mark.integration]

OWN_CODE = """
import torch

class Doubled(torch.nn.Module):
    def forward(self, features):
        features["sentence_embedding"] = 2 * features["sentence_embedding"]
        return features

    @classmethod
    def load(cls, *args, **kwargs):
        return cls()
"""


def listed(folder: Path, model: Path, *more: str) -> str:
    """A list with this model, as `tiny`."""
    file = folder / "models.toml"
    file.write_text("\n".join(["[tiny]", f"name = {json.dumps(str(model))}", *more]))
    return str(file)


def test_worker_of_a_further_models_queue_embeds_with_it(
    stack: Stack, ledger: Ledger, texts: list[str], model_folder: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tiny_model(tmp_path, model_folder, "bert", "mean")
    stack.worker("cpu.tiny", app="worker", DEVICE="cpu", ENGINE="torch", PARITY="0", MODELS_FILE=listed(tmp_path, folder))
    job = ended(ledger, submit(ledger, texts[:40], queue="cpu.tiny", model=str(folder)))
    assert (job.counts.done, job.dimensions, job.engine) == (40, 32, "torch")
    (worker,) = ledger.workers()
    assert (worker.model, worker.queues) == (str(folder), ("cpu.tiny",))
    wanted = SentenceTransformer(str(folder), device="cpu").encode(texts[:40])
    assert worst_cosine(vectors_of(ledger, job.id), wanted) >= 0.999999


def test_code_of_a_model_is_run_only_where_the_list_trusts_it(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import dynamic_module_utils

    from worker.engines.torch_engine import TorchEngine

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tiny_model(tmp_path, model_folder, "bert", "mean")
    plain = TorchEngine.load(Settings(model_name=str(folder)), "cpu")
    (folder / "own.py").write_text(OWN_CODE)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"idx": 2, "name": "2", "path": "", "type": "own.Doubled"}]))

    for settings in (
        Settings(model_name=str(folder)),
        Settings(model_name=str(folder), models_file=listed(tmp_path, folder)),
    ):
        with pytest.raises(ModelUnavailable, match=r"Its code is run only where its table in MODELS_FILE has trust_remote_code"):
            TorchEngine.load(settings, "cpu")
    assert not (tmp_path / "modules").exists()

    trusted = listed(tmp_path, folder, "trust_remote_code = true")
    engine = TorchEngine.load(Settings(model_name=str(folder), models_file=trusted), "cpu")
    tokens = plain.tokenize(["a text"], None)
    np.testing.assert_allclose(engine.embed(tokens), 2 * plain.embed(tokens), rtol=1e-5)

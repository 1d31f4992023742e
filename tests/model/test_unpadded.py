"""Texts in one row give the vectors of padded batches. What is special to cuda, the attention kernel, is not tested here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.config import Settings
from core.errors import InvalidSetting
from core.ledger import Ledger
from tests.integration.test_drain import drain
from tests.integration.test_worker import submit
from tests.model.test_torch_engine import worst_cosine
from tests.model.tiny import tiny_model
from worker.engines.model import Model
from worker.engines.parity import parity
from worker.engines.torch_engine import TorchEngine

pytestmark = pytest.mark.model


def load(folder: Path, *, unpadded: bool) -> TorchEngine:
    settings = Settings.from_env({"MODEL_NAME": str(folder)})
    plain = TorchEngine.load(settings, "cpu")
    return TorchEngine(plain.model, replace(plain.facts, unpadded=unpadded), settings.empty_cache_tokens)


@pytest.mark.parametrize(
    ("kind", "pooling", "prompt"),
    [
        ("bert", "mean", False),
        ("bert", "cls", False),
        ("bert", "lasttoken", False),
        ("bert", "mean", True),
        ("xlm-roberta", "mean", False),
    ],
)
def test_vectors_equal_those_of_padded_batches(
    tmp_path: Path, model_folder: Path, texts: list[str], kind: str, pooling: str, prompt: bool
) -> None:
    folder = tiny_model(tmp_path, model_folder, kind, pooling, prompt=prompt)
    padded, unpadded = load(folder, unpadded=False), load(folder, unpadded=True)
    tokens = padded.tokenize(texts[1:30], "query" if prompt else None)
    assert len({len(item.ids) for item in tokens}) > 10
    wanted = padded.embed(tokens)
    np.testing.assert_allclose(unpadded.embed(tokens), wanted, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([unpadded.embed([item]) for item in tokens[:5]]), wanted[:5], atol=1e-5)


def test_parity_at_start_tells_a_good_row_from_a_bad_one(
    engine: TorchEngine, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parity(load(model_folder, unpadded=True), engine) >= 0.999999

    def across_texts(module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **_: Any) -> Any:
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling)
        return found.transpose(1, 2), None

    monkeypatch.setattr("worker.engines.unpadded.attend", across_texts)
    assert parity(load(model_folder, unpadded=True), engine) < 0.99


def test_row_has_no_padding(tmp_path: Path, model_folder: Path) -> None:
    model = load(tiny_model(tmp_path, model_folder, "xlm-roberta", "mean"), unpadded=True)
    row = model._unpadded.row(model.tokenize(["a b c", "d"], None))  # type: ignore[union-attr]
    assert row["input_ids"].shape == row["position_ids"].shape == row["seq_idx"].shape == (1, 8)
    assert row["position_ids"][0].tolist() == [1, 2, 3, 4, 5, 1, 2, 3]  # they begin after the padding's id
    assert row["seq_idx"][0].tolist() == [0] * 5 + [1] * 3
    assert row["cu_seq_lens_q"].tolist() == [0, 5, 8]
    assert (row["cu_seq_lens_q"].dtype, row["max_length_q"]) == (np.int32, 5)


def test_padded_batch_is_refused_once_the_attention_is_changed(tmp_path: Path, model_folder: Path) -> None:
    engine = load(tiny_model(tmp_path, model_folder, "bert", "mean"), unpadded=True)
    padded = engine.model.pad(engine.tokenize(["a", "a longer text"], None))
    with pytest.raises(TypeError, match="cu_seq_lens_q"):
        engine.model.module({name: torch.from_numpy(array) for name, array in padded.items()})


@pytest.mark.parametrize("kind", ["modernbert", "mpnet"])
def test_model_of_another_kind_is_refused(tmp_path: Path, model_folder: Path, kind: str) -> None:
    with pytest.raises(InvalidSetting, match=f"UNPADDED=1 takes models of type bert, roberta, xlm-roberta; this one is {kind}"):
        load(tiny_model(tmp_path, model_folder, kind, "mean"), unpadded=True)


def test_float32_on_cuda_is_refused_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InvalidSetting, match="UNPADDED=1 needs DTYPE=float16 or bfloat16"):
        TorchEngine.load(Settings.from_env({"UNPADDED": "1", "DTYPE": "float32"}), "cuda:0")


@pytest.mark.integration
def test_budget_counts_the_sum(tmp_path: Path, model_folder: Path, texts: list[str], ledger: Ledger) -> None:
    folder = tiny_model(tmp_path, model_folder, "bert", "mean", normalize=True)
    padded, unpadded = load(folder, unpadded=False), load(folder, unpadded=True)
    submit(ledger, texts[:60])
    figures = drain(unpadded, ledger).figures()
    tokens = padded.tokenize(texts[:60], None)
    assert figures["tokens"] == sum(len(item.ids) for item in tokens)
    assert figures["padding_share"] == figures["last_batch"]["padding_share"] == 0
    blocks = [ledger.result("job", span) for span in ledger.finished("job")]
    found = np.concatenate([np.frombuffer(block.vectors, dtype="<f4").reshape(-1, 32) for block in blocks])
    assert worst_cosine(found, padded.embed(tokens)) >= 0.999999

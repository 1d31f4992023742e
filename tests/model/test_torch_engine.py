"""The torch engine gives the vectors of sentence-transformers, batched or alone."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.batching import batches
from core.config import Settings
from core.errors import DeviceLost, ModelUnavailable, OutOfMemory
from core.jobs import JobStatus
from core.ledger import Ledger
from tests.integration.test_drain import drain
from tests.integration.test_worker import submit
from tests.model.tiny import tiny_model
from worker.engines.torch_engine import TorchEngine

pytestmark = pytest.mark.model


def worst_cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    return float(((found * wanted).sum(axis=1) / norms).min())


def embed(engine: Any, texts: list[str], prompt_name: str | None = None, budget_tokens: int = 2048) -> np.ndarray:
    tokens = engine.tokenize(texts, prompt_name)
    vectors = np.empty((len(texts), engine.facts.dimensions), dtype=np.float32)
    for batch in batches([len(item.ids) for item in tokens], budget_tokens):
        vectors[batch] = engine.embed([tokens[index] for index in batch])
    return vectors


def test_vectors_equal_sentence_transformers(engine: Any, texts: list[str], wanted: np.ndarray) -> None:
    found = embed(engine, texts)
    assert worst_cosine(found, wanted) >= 0.999999
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_alone_equals_batched(engine: Any, texts: list[str], wanted: np.ndarray) -> None:
    alone = np.concatenate([embed(engine, [text]) for text in texts])
    assert worst_cosine(alone, wanted) >= 0.999999


def test_tokens_and_truncation_are_those_of_sentence_transformers(engine: Any, reference: Any, texts: list[str]) -> None:
    for text, tokens in zip(texts, engine.tokenize(texts, None), strict=True):
        features = reference.preprocess([text])
        assert list(tokens.ids) == features["input_ids"][0].tolist()
        untruncated = reference.tokenizer([text], truncation=False, verbose=False)["input_ids"][0]
        assert tokens.truncated == (len(untruncated) > engine.facts.max_tokens)
    assert any(tokens.truncated for tokens in engine.tokenize(texts, None))


def test_facts_tell_the_model(engine: Any) -> None:
    facts = engine.facts
    assert (facts.engine, facts.device, facts.dtype) == ("torch", "cpu", "float32")
    assert (facts.dimensions, facts.max_tokens) == (384, 256)
    assert facts.budget_tokens == 8 * 256
    assert facts.revision.startswith("sha256:")
    assert engine.memory()["resident_bytes"] > 50e6


@pytest.fixture(scope="module")
def prompted_folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with prompts in its configuration, the prompt left out of the mean."""
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("prompted")
    reference.save_pretrained(str(folder))
    model = SentenceTransformer(str(folder), device="cpu", prompts={"query": "Represent this question: ", "passage": ""})
    model.set_pooling_include_prompt(False)
    model.save_pretrained(str(folder))
    return folder


def test_prompts_equal_sentence_transformers(prompted_folder: Path, texts: list[str]) -> None:
    from sentence_transformers import SentenceTransformer

    prompted = SentenceTransformer(str(prompted_folder), device="cpu")
    engine = TorchEngine.load(Settings.from_env({"MODEL_NAME": str(prompted_folder)}), "cpu")
    assert engine.facts.prompts == {"query": "Represent this question: "}
    some = texts[:40]
    wanted = prompted.encode(some, prompt_name="query")
    assert worst_cosine(embed(engine, some, "query"), wanted) >= 0.999999
    assert worst_cosine(embed(engine, some), wanted) < 0.999


def test_absent_device_names_what_was_found(model_folder: Path) -> None:
    from worker.engines.device import resolve_device

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ModelUnavailable, match=r"DEVICE=cuda is absent; found: .*cpu"):
        resolve_device("cuda")
    assert resolve_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), OutOfMemory),
        (torch.AcceleratorError("CUDA error: out of memory"), OutOfMemory),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), DeviceLost),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
    ],
)
def test_full_memory_is_told_apart_from_other_errors(
    engine: Any, monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception]
) -> None:
    def forward(*_: Any, **__: Any) -> Any:
        raise raised

    monkeypatch.setattr(engine.model.module, "forward", forward)
    with pytest.raises(expected) as caught:
        engine.embed(engine.tokenize(["a text"], None))
    assert caught.type is expected
    if expected is OutOfMemory:
        assert str(caught.value) == "cpu has too little memory for 1 inputs of 4 tokens"


def test_pass_that_ran_out_of_memory_keeps_no_tensors(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    def forward(*_: Any, **__: Any) -> Any:
        activations = torch.zeros(1000)
        kept.append(weakref.ref(activations))
        raise MemoryError

    monkeypatch.setattr(engine.model.module, "forward", forward)
    with pytest.raises(OutOfMemory) as caught:
        engine.embed(engine.tokenize(["a text"], None))
    assert caught.value is not None
    assert kept[0]() is None


@pytest.mark.integration
@pytest.mark.parametrize(
    "full", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")]
)
def test_full_cpu_halves_the_batch_and_fails_nothing(
    engine: Any, ledger: Ledger, texts: list[str], wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch, full: Exception
) -> None:
    honest, some = engine.model.module.forward, texts[1:17]

    def forward(features: dict[str, Any]) -> Any:
        if features["input_ids"].numel() > 300:
            raise full
        return honest(features)

    monkeypatch.setattr(engine.model.module, "forward", forward)
    submit(ledger, some)
    assert drain(engine, ledger).figures()["out_of_memory"] > 0
    job = ledger.get("job", "default")
    assert (job.status, job.counts.done) == (JobStatus.SUCCEEDED, len(some))
    blocks = [ledger.result("job", span) for span in ledger.finished("job")]
    found = np.concatenate([np.frombuffer(block.vectors, dtype="<f4").reshape(-1, 384) for block in blocks])
    assert worst_cosine(found, wanted[1:17]) >= 0.999999


def test_quota_of_the_container_limits_the_threads(tmp_path: Path) -> None:
    from worker.engines.device import _quota_cpus

    assert _quota_cpus(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _quota_cpus(tmp_path) is None
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert _quota_cpus(tmp_path) == 2


class Asked(TorchDispatchMode):
    """Notes every operation that needs a tensor's value on the host, where a device would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(
            name in str(func) for name in ("is_nonzero", "_local_scalar_dense", "aten.nonzero", "aten.equal", "masked_select")
        ):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [
        ("bert", "mean"),
        ("bert", "max"),
        ("distilbert", "cls"),
        ("xlm-roberta", "cls"),
        ("mpnet", "mean"),
        ("modernbert", "lasttoken"),
    ],
)
def test_forward_pass_asks_the_device_nothing(
    tmp_path: Path, model_folder: Path, texts: list[str], kind: str, pooling: str
) -> None:
    """What a CPU is asked here, a GPU would be asked, too, and its host would wait for all batches before."""
    from sentence_transformers import SentenceTransformer

    folder = str(tiny_model(tmp_path, model_folder, kind, pooling))
    plain, tiny = SentenceTransformer(folder, device="cpu"), TorchEngine.load(Settings.from_env({"MODEL_NAME": folder}), "cpu")
    for some in (texts[1:9], texts[1:2] * 3):  # with padding, and without
        tokens = tiny.tokenize(some, None)
        with Asked() as asked:
            vectors = tiny.start(tokens)
        assert asked.found == []
        np.testing.assert_allclose(vectors(), plain.encode(some), atol=1e-5)
    with Asked() as asked, torch.inference_mode():
        plain(plain.preprocess(texts[1:9]))
    assert asked.found, "without the engine's word the device is asked"

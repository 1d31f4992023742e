"""The OpenVINO engine gives the vectors of torch, for every kind of model that converts."""

import importlib.util
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.config import Settings
from core.errors import InvalidSetting, ModelUnavailable
from tests.model.test_torch_engine import embed, worst_cosine
from tests.model.tiny import tiny_model

if importlib.util.find_spec("openvino") is None:
    pytest.skip("the OpenVINO package is not installed", allow_module_level=True)

pytestmark = pytest.mark.model


def load(model: Path | str, cache: Path, **environ: str) -> Any:
    from worker.engines.loading import load_engine

    settings = {"DEVICE": "cpu", "DTYPE": "float32", "MODEL_NAME": str(model), "CACHE_DIR": str(cache), "PARITY_FLOOR": "0.99"}
    return load_engine(Settings.from_env(settings | environ))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def fast(model_folder: Path, cache: Path) -> Any:
    return load(model_folder, cache)


def test_it_is_the_default_on_a_cpu(fast: Any) -> None:
    assert (fast.facts.engine, fast.facts.device, fast.facts.dtype) == ("openvino", "cpu", "float32")
    assert fast.facts.parity >= 0.999999


def test_conversion_reports_to_nobody(fast: Any) -> None:
    from openvino.tools.ovc import convert_impl

    assert convert_impl.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


def test_vectors_equal_sentence_transformers(fast: Any, texts: list[str], wanted: np.ndarray) -> None:
    assert worst_cosine(embed(fast, texts), wanted) >= 0.999999


def test_alone_equals_batched(fast: Any, texts: list[str], wanted: np.ndarray) -> None:
    alone = np.concatenate([embed(fast, [text]) for text in texts])
    assert worst_cosine(alone, wanted) >= 0.999999


def test_vectors_stay_when_the_next_batch_comes(fast: Any) -> None:
    first, second = fast.tokenize(["one text"], None), fast.tokenize(["another one"], None)
    kept = fast.embed(first)
    before = kept.copy()
    fast.embed(second)
    np.testing.assert_array_equal(kept, before)


def test_second_start_takes_the_converted_model_from_the_cache(
    fast: Any, model_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(*_: Any, **__: Any) -> Any:
        raise AssertionError("converted again")

    monkeypatch.setattr("openvino.convert_model", convert)
    assert load(model_folder, cache).facts.engine == "openvino"


def test_model_that_does_not_convert_is_left_to_torch(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def convert(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no conversion rule for this operation")

    monkeypatch.setattr("openvino.convert_model", convert)
    with caplog.at_level("INFO"):
        assert load(model_folder, tmp_path).facts.engine == "torch"
    assert "computing with torch, OpenVINO cannot be had: no conversion rule for this operation" in caplog.text
    with pytest.raises(ModelUnavailable, match="ENGINE=openvino cannot be had: no conversion rule"):
        load(model_folder, tmp_path, ENGINE="openvino")


def test_vectors_below_the_floor_stop_the_worker(model_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from worker.engines import openvino_engine

    honest = openvino_engine.OpenVinoEngine.embed

    def noisy(self: Any, batch: Any) -> Any:
        found = honest(self, batch)
        found[0] = -found[0]
        return found

    monkeypatch.setattr(openvino_engine.OpenVinoEngine, "embed", noisy)
    with pytest.raises(ModelUnavailable, match=r"worst cosine is -1\.0+, PARITY_FLOOR is 0\.99"):
        load(model_folder, cache)
    assert load(model_folder, cache, PARITY="0").facts.parity is None


def test_int8_without_openvino_is_refused(model_folder: Path, cache: Path) -> None:
    with pytest.raises(InvalidSetting, match="DTYPE=int8 needs ENGINE=openvino"):
        load(model_folder, cache, ENGINE="torch", DTYPE="int8")


def convert_and_embed(model: str, cache: str, start: Any, results: Any) -> None:
    start.wait()
    try:
        engine = load(model, Path(cache), ENGINE="openvino")
        results.put((engine.facts.engine, engine.embed(engine.tokenize(["one text"], None)).tolist()))
    except Exception as error:
        results.put((repr(error.__cause__ or error), []))


def test_two_workers_may_convert_at_once(model_folder: Path, tmp_path: Path, fast: Any) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=convert_and_embed, args=(str(model_folder), str(tmp_path), start, results)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=100) for _ in processes]
    for process in processes:
        process.join(timeout=30)
    wanted = embed(fast, ["one text"])
    for engine, vector in found:
        assert engine == "openvino"
        assert worst_cosine(np.array(vector), wanted) >= 0.999999
    assert len(list((tmp_path / "openvino").iterdir())) == 1


def test_very_long_text_is_cut_as_sentence_transformers_does(fast: Any, reference: Any) -> None:
    long = "The Mock Turtle went on with the song, and nobody knew when it would end. " * 1400
    assert len(long) > 100_000
    for text in (long, "word" * 25_000, " " * 100_000 + "a needle in a haystack", "🐇" * 5000 + " end " * 5000):
        (tokens,) = fast.tokenize([text], None)
        assert list(tokens.ids) == reference.preprocess([text])["input_ids"][0].tolist()
    assert worst_cosine(embed(fast, [long]), reference.encode([long])) >= 0.999999


# Models of every shape -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "pooling", "dense", "normalize", "prompt"),
    [
        ("bert", "mean", False, False, False),
        ("bert", "cls", False, True, False),
        ("bert", "max", False, False, False),
        ("bert", "lasttoken", False, True, False),
        ("bert", "mean", True, True, False),
        ("bert", "mean", False, True, True),
        ("distilbert", "mean", False, True, False),
    ],
)
def test_modules_of_the_model_decide(
    tmp_path: Path,
    model_folder: Path,
    cache: Path,
    texts: list[str],
    kind: str,
    pooling: str,
    dense: bool,
    normalize: bool,
    prompt: bool,
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tiny_model(tmp_path, model_folder, kind, pooling, dense=dense, normalize=normalize, prompt=prompt)
    engine = load(folder, cache, ENGINE="openvino")
    assert (engine.facts.engine, engine.facts.dimensions) == ("openvino", 16 if dense else 32)
    plain, name = SentenceTransformer(str(folder), device="cpu"), "query" if prompt else None
    some = texts[:60]
    found, wanted = embed(engine, some, name), plain.encode(some, prompt_name=name)
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert worst_cosine(found, wanted) >= 0.99999

"""Texts beyond the model's maximum, by their end or in chunks, against sentence-transformers given the same tokens or texts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.config import Settings
from core.ledger import Ledger
from tests.integration.test_drain import drain
from tests.integration.test_worker import submit
from tests.model.test_real_worker import vectors_of
from tests.model.test_torch_engine import prompted_folder as prompted_folder
from tests.model.test_torch_engine import worst_cosine
from tests.processes import ROOT
from worker.engines.torch_engine import TorchEngine

pytestmark = [pytest.mark.model, pytest.mark.integration]

TEXT_TOKENS = 254
"""Of a text, beside [CLS] and [SEP]."""


@pytest.fixture(scope="module")
def book() -> str:
    return (ROOT / "examples" / "alice.txt").read_text()[2000:12_000]


def tokens_of(reference: Any, text: str) -> list[int]:
    found: list[int] = reference.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return found


def embed_ids(reference: Any, ids: list[list[int]]) -> np.ndarray:
    """sentence-transformers' vectors of token ids, [CLS] and [SEP] put around each."""
    import torch

    cls, sep = reference.tokenizer.cls_token_id, reference.tokenizer.sep_token_id
    features = reference.tokenizer.pad({"input_ids": [[cls, *found, sep] for found in ids]}, return_tensors="pt")
    with torch.inference_mode():
        vectors: np.ndarray = reference(dict(features))["sentence_embedding"].numpy()
    return vectors


@pytest.mark.parametrize("overlap", [0, 50])
def test_vector_of_chunks_is_the_weighted_mean_of_theirs(
    engine: Any, ledger: Ledger, reference: Any, book: str, overlap: int
) -> None:
    submit(ledger, [book, "short"], truncate="chunk", chunk_overlap=overlap)
    drain(engine, ledger)
    ids, step = tokens_of(reference, book), TEXT_TOKENS - overlap
    chunks = [ids[first : first + TEXT_TOKENS] for first in range(0, len(ids) - overlap, step)]
    mean = np.average(embed_ids(reference, chunks), axis=0, weights=[len(chunk) for chunk in chunks])
    wanted = np.stack([mean / np.linalg.norm(mean), reference.encode("short")])
    assert worst_cosine(vectors_of(ledger, "job"), wanted) >= 0.999999
    np.testing.assert_allclose(vectors_of(ledger, "job"), wanted, atol=1e-5)
    block = ledger.result("job", ledger.finished("job")[0])
    assert block.chunks == {0: len(chunks)}
    assert block.tokens[0] == sum(len(chunk) + 2 for chunk in chunks)


def test_chunks_say_where_they_are_in_the_text(engine: Any, reference: Any, book: str) -> None:
    (chunks,) = engine.chunks([book], None)
    assert [list(chunk.ids[1:-1]) for chunk in chunks] == [
        tokens_of(reference, book)[n : n + TEXT_TOKENS] for n in range(0, len(tokens_of(reference, book)), TEXT_TOKENS)
    ]
    assert "".join("".join(book[slice(*chunk.span)].split()) for chunk in chunks) == "".join(book.split())


@pytest.mark.parametrize("unbroken", [False, True], ids=["words", "few tokens in many characters"])
def test_start_embeds_the_last_tokens(engine: Any, ledger: Ledger, reference: Any, book: str, unbroken: bool) -> None:
    text = book + " " * 5000 * unbroken + "the end"
    submit(ledger, [text], truncate="start")
    drain(engine, ledger)
    wanted = embed_ids(reference, [tokens_of(reference, text)[-TEXT_TOKENS:]])
    assert worst_cosine(vectors_of(ledger, "job"), wanted) >= 0.999999
    assert ledger.result("job", ledger.finished("job")[0]).truncated == {0}


def test_tail_that_fits_is_what_encode_makes_of_it(engine: Any, ledger: Ledger, reference: Any) -> None:
    words = ["king", "queen", "rabbit", "garden", "time"] * 100
    submit(ledger, [" ".join(words)], truncate="start")
    drain(engine, ledger)
    assert worst_cosine(vectors_of(ledger, "job"), reference.encode([" ".join(words[-TEXT_TOKENS:])])) >= 0.999999


def test_prompt_stands_before_each_chunk(prompted_folder: Path, book: str) -> None:
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(prompted_folder), device="cpu")
    prompted = TorchEngine.load(Settings.from_env({"MODEL_NAME": str(prompted_folder)}), "cpu")
    words = " ".join(["king", "queen", "rabbit", "garden", "time"] * 100)
    for found in (prompted.chunks([words], "query"), prompted.chunks([words], "query", only_last=True)):
        texts = [words[slice(*chunk.span)] if chunk.span[1] else words for chunk in found[0]]
        if not found[0][0].span[1]:
            kept = len(found[0][0].ids) - 2 - len(tokens_of(plain, plain.prompts["query"]))
            texts = [" ".join(words.split()[-kept:])]
        assert max(len(chunk.ids) for chunk in found[0]) == 256
        assert worst_cosine(prompted.embed(found[0]), plain.encode(texts, prompt_name="query")) >= 0.999999

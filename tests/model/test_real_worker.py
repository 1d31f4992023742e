"""A real worker process with the real model: what the ledger holds is what sentence-transformers computes."""

import importlib.util
from typing import Any

import numpy as np
import pytest

from core.ledger import Ledger
from tests.integration.test_worker import ended, submit
from tests.model.test_torch_engine import worst_cosine
from tests.processes import Stack

pytestmark = [pytest.mark.model, pytest.mark.integration, pytest.mark.timeout(400)]


def vectors_of(ledger: Ledger, job_id: str) -> np.ndarray:
    blocks = [ledger.result(job_id, span) for span in ledger.finished(job_id)]
    return np.concatenate([np.frombuffer(block.vectors, dtype="<f4").reshape(-1, block.dimensions) for block in blocks])


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_worker_gives_the_vectors_of_sentence_transformers(
    stack: Stack, ledger: Ledger, reference: Any, texts: list[str], wanted: np.ndarray, engine: str
) -> None:
    if engine == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("the OpenVINO package is not installed")
    stack.worker(app="worker", DEVICE="cpu", ENGINE=engine, DTYPE="float32", CACHE_DIR=str(stack.folder))
    full = ended(ledger, submit(ledger, texts, "full"), seconds=300)
    assert (full.counts.done, full.dimensions) == (len(texts), 384)
    assert (full.device, full.engine, full.dtype) == ("cpu", engine, "float32")
    assert worst_cosine(vectors_of(ledger, "full"), wanted) >= 0.999999

    some = texts[:50]
    ended(ledger, submit(ledger, some, "short", dimensions=64))
    short = vectors_of(ledger, "short")
    assert short.shape == (50, 64)
    assert worst_cosine(short, reference.encode(some, truncate_dim=64, normalize_embeddings=True)) >= 0.999999
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-5)

    ended(ledger, submit(ledger, some, "raw", dimensions=64, normalize=False))
    np.testing.assert_allclose(vectors_of(ledger, "raw"), reference.encode(some, truncate_dim=64), atol=1e-5)

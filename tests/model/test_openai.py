"""OpenAI's client, unmodified, and the real model: the vectors are sentence-transformers', and the job's to the bit."""

import io
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.model.test_torch_engine import worst_cosine
from tests.processes import Stack

pytestmark = [pytest.mark.model, pytest.mark.integration, pytest.mark.timeout(400)]

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def test_official_client_gets_the_vectors_of_sentence_transformers(stack: Stack, reference: Any, texts: list[str]) -> None:
    stack.api()
    stack.worker(app="worker", DEVICE="cpu", ENGINE="torch", PARITY="0")
    texts = texts[:30]
    with openai.OpenAI(base_url=f"{stack.base_url}/v1", api_key="none") as client:
        for encoding_format in ("base64", "float"):
            # With a key the job stays for a while, so its own record and result can be read. Another job would be cut into
            # other batches, which moves the last bits.
            options: dict[str, Any] = {"encoding_format": "float"} if encoding_format == "float" else {}
            answer = client.embeddings.create(
                model=MODEL, input=texts, extra_headers={"Idempotency-Key": encoding_format}, **options
            )
            found = np.array([item.embedding for item in answer.data], dtype="<f4")
            job = httpx.get(f"{stack.base_url}/v1/jobs").json()["data"][0]
            stored = np.load(io.BytesIO(httpx.get(f"{stack.base_url}{job['links']['result']}?format=npy").content))
            assert found.tobytes() == stored.tobytes()
            assert answer.usage.prompt_tokens == job["tokens"]
        assert worst_cosine(found, reference.encode(texts)) >= 0.999999
        short = client.embeddings.create(model=MODEL, input=texts[:20], dimensions=64)
    vectors = np.array([item.embedding for item in short.data])
    assert worst_cosine(vectors, reference.encode(texts[:20], truncate_dim=64, normalize_embeddings=True)) >= 0.999999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

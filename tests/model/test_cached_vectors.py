"""The real model with the cache: what comes from it is what was computed, to the bit."""

from typing import Any

import pytest

from core.ledger import Ledger
from core.ledger.cache import Entries
from tests.integration.test_cache import PLENTY, drained, submit, vectors_of

pytestmark = [pytest.mark.model, pytest.mark.integration]


def test_text_that_comes_again_has_the_same_vector_and_count_of_tokens(ledger: Ledger, engine: Any, texts: list[str]) -> None:
    some = [*texts[1:12], "word " * 400]
    for job_id in ("computed", "hit"):
        submit(ledger, some, job_id)
        drained(ledger, engine)
    computed, hit = (ledger.get(job_id, "default") for job_id in ("computed", "hit"))
    assert (computed.cached, hit.cached, computed.truncated > 0) == (0, 12, True)
    assert (computed.tokens, computed.truncated) == (hit.tokens, hit.truncated)
    assert vectors_of(ledger, "computed") == vectors_of(ledger, "hit")
    assert Entries(ledger, PLENTY).size()[0] == len(set(some))

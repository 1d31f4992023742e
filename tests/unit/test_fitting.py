"""The token budget at start, on a device whose memory is known."""

import pytest

from core.errors import ModelUnavailable
from tests.fakes import MAX_TOKENS
from tests.integration.test_drain import Device
from worker.engines.fitting import fit_budget


@pytest.mark.parametrize("full_at", ["start", "read"])
@pytest.mark.parametrize(
    ("memory_tokens", "tried", "budget"),
    [
        (10**6, [8], 2048),
        (2048, [8], 2048),
        (2047, [8, 4], 1024),
        (700, [8, 4, 2], 512),
        (300, [8, 4, 2, 1], 256),
    ],
)
def test_budget_is_halved_until_a_full_batch_fits(memory_tokens: int, tried: list[int], budget: int, full_at: str) -> None:
    engine = Device(memory_tokens=memory_tokens, full_at=full_at, batch_size=8)
    fit_budget(engine)
    assert engine.facts.budget_tokens == budget
    assert list(dict.fromkeys(len(batch) for batch in engine.started)) == tried
    assert {len(item.ids) for batch in engine.started for item in batch} == {MAX_TOKENS}
    assert engine.freed == len(tried) - 1


def test_batch_is_tried_beside_those_that_run_ahead() -> None:
    engine = Device(ahead=1, batch_size=8)
    fit_budget(engine)
    assert engine.steps == [("start", 0), ("start", 1), ("read", 0), ("read", 1)]


def test_device_without_room_for_one_text_is_refused() -> None:
    with pytest.raises(ModelUnavailable, match="cpu has too little memory for one text of 256 tokens"):
        fit_budget(Device(memory_tokens=MAX_TOKENS - 1, batch_size=8))

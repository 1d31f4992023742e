"""Find by trying how large a batch may be on the device at hand."""

from dataclasses import replace

from core.errors import ModelUnavailable, OutOfMemory
from worker.engines import Engine
from worker.log import log


def fit_budget(engine: Engine) -> None:
    """Halve the token budget in the engine's facts until a batch of full size fits beside those that are started ahead.

    For devices with memory of their own. On a CPU it would take seconds and tell nothing: Linux grants more memory than there is,
    and kills later.

    Raises:
        ModelUnavailable: not even one text of full length fits.
    """
    (longest,) = engine.tokenize(["word " * engine.facts.max_tokens], None)
    tokens = len(longest.ids)
    while True:
        facts = engine.facts
        batch = [longest] * max(1, facts.budget_tokens // tokens)
        try:
            for vectors in [engine.start(batch) for _ in range(1 + facts.ahead)]:
                vectors()
            return
        except OutOfMemory:
            pass  # go on when the error, and what it refers to, is gone
        engine.free_memory()
        if len(batch) == 1:
            raise ModelUnavailable(f"{facts.device} has too little memory for one text of {tokens} tokens", param="DEVICE")
        engine.facts = replace(facts, budget_tokens=max(tokens, facts.budget_tokens // 2))
        log.warning(
            "a batch of %d tokens does not fit in the memory of %s, trying %d",
            len(batch) * tokens,
            facts.device,
            engine.facts.budget_tokens,
        )

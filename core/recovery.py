"""What to do with a shard that was in flight when a worker died."""

from enum import StrEnum


class Step(StrEnum):
    RUN = "run"
    """Embed it."""
    DIVIDE = "divide"
    """It died alone, so one of its inputs is at fault: hand out each input by itself."""
    FAIL = "fail"
    """A single input that died too often: it fails, with a reason, and harms nobody any more."""


def next_step(attempt: int, inputs: int, max_attempts: int) -> Step:
    """The step for attempt number `attempt` at a shard of so many inputs.

    A whole shard is tried twice, the second time alone (most deaths have nothing to do with the text: a deploy, a node that was
    drained). The last attempts are each input's own.
    """
    if inputs == 1:
        return Step.RUN if attempt <= max_attempts else Step.FAIL
    return Step.RUN if attempt < max(2, max_attempts) else Step.DIVIDE

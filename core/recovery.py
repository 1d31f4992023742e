"""What to do with a shard that was in flight when a worker died.

Most deaths have nothing to do with a text: a deploy, a node that was drained, memory that somebody else took. So a death is held
against a shard only if the shard was alone with the worker, and the worker never came back:

1. A lease that runs out makes every shard that the worker held a suspect. Nothing is held against them: they were in company.
2. A suspect is handed out alone. If that lease runs out too, it counts as a death of this shard.
3. A process that still knows of the attempt takes that back, as soon as it reaches Redis: it was not dead. So neither a worker
   that was stopped for a while nor a Redis that was away or stood still counts against a text. (Ten times at most, so that a
   text which always takes longer than its lease comes to an end as well.)
4. A shard that was alone at one death is divided into its inputs, each a suspect with no death of its own.
5. An input with `MAX_ATTEMPTS` deaths fails.

So a text that always kills its worker takes one in company, one with its shard alone, and `MAX_ATTEMPTS` by itself:
`MAX_ATTEMPTS` + 2 in all, and one less if it is the only input of its shard. An innocent text fails only if it is by itself in
flight, for one batch each, at `MAX_ATTEMPTS` deaths of other causes. An engine that hangs is a death like any other: the process
is ended after `HANG_SECONDS` (`worker.watchdog`).
"""

from enum import StrEnum


class Step(StrEnum):
    RUN = "run"
    """Embed it."""
    DIVIDE = "divide"
    """It died alone, so one of its inputs is at fault: hand out each input by itself."""
    FAIL = "fail"
    """A single input that died too often: it fails, with a reason, and harms nobody any more."""


def next_step(deaths: int, inputs: int, max_attempts: int) -> Step:
    """The step for a shard of so many inputs that was alone at so many deaths."""
    if inputs == 1:
        return Step.RUN if deaths < max_attempts else Step.FAIL
    return Step.RUN if deaths == 0 else Step.DIVIDE


def why_it_failed(deaths: int, hangs: int) -> tuple[str, str]:
    """Code and message for an input that failed."""
    if hangs == deaths:
        return "worker_hung", f"the model hung {hangs} times while it embedded this input alone; each time its process was ended"
    also = f" ({hangs} of them because the model hung)" if hangs else ""
    return "worker_died", f"the worker died {deaths} times while it embedded this input alone{also}"

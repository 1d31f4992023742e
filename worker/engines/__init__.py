"""What turns texts into vectors. Only this package imports torch.

An engine is loaded once per process, in the worker's child. `torch` is the reference; every other engine is measured
against it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Tokens:
    """One input as the model sees it."""

    ids: Sequence[int]
    truncated: bool
    """The text was longer than the model's maximum and was cut: some of it is not here."""
    prompt_tokens: int = 0
    """Tokens of the prompt that pooling leaves out; inputs of one batch agree in it."""
    weight: int = 0
    """Of a chunk: its tokens of the text itself, without special tokens and prompt."""
    span: tuple[int, int] = (0, 0)
    """Of a chunk: where it begins and ends in the text, in characters."""


@dataclass(frozen=True)
class EngineFacts:
    """What is fixed once the engine is loaded."""

    engine: str
    model: str
    revision: str
    device: str
    dtype: str
    dimensions: int
    max_tokens: int
    """Most tokens of one input, special tokens included."""
    prompts: Mapping[str, str]
    """By name."""
    budget_tokens: int
    """Most tokens in a batch to start with, padding included where there is any."""
    parity: float | None = None
    """Worst cosine against float32 torch on the golden texts; None when it was not measured."""
    unpadded: bool = False
    """A batch takes the sum of its tokens, not its longest input × number of inputs."""
    ahead: int = 0
    """Batches to `start` before the vectors of an earlier one are read, so that the device never waits for its host."""
    device_name: str = ""
    """What its maker calls the device."""


class Engine(Protocol):
    """To be inherited from: an engine has `embed` at least."""

    facts: EngineFacts

    def tokenize(self, texts: Sequence[str], prompt_name: str | None) -> list[Tokens]:
        """Each text, with the named prompt of the model in front, as tokens; longer ones cut to `max_tokens` at their end."""

    def chunks(
        self, texts: Sequence[str], prompt_name: str | None, *, overlap: int = 0, only_last: bool = False
    ) -> list[list[Tokens]]:
        """Texts that are longer than `max_tokens`, each as chunks of at most that, with special tokens and prompt around each.

        A chunk begins with the last `overlap` tokens of the one before. No token of the text is lost; with `only_last` there is
        one chunk, of as many of the text's last tokens as fit. There is none when prompt and overlap leave no room,
        or the overlap is more than half of it.
        """

    def embed(self, batch: Sequence[Tokens]) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """Vectors of one batch as the model gives them, float32, (len(batch), dimensions), in the batch's order.

        Raises:
            OutOfMemory: the device cannot hold the batch; the engine stays usable.
        """

    def start(self, batch: Sequence[Tokens]) -> "Callable[[], np.ndarray[Any, np.dtype[np.float32]]]":
        """`embed` in two steps: what comes back waits for the vectors of this batch. Batches are computed in the order of starts.

        An engine that returns before the vectors are there says so by `facts.ahead`; this one computes them at once.

        Raises:
            OutOfMemory: as `embed`, from either step.
            DeviceLost: the device failed, in this batch or in another that was started; only a new process can use it again.
        """
        vectors = self.embed(batch)
        return lambda: vectors

    def free_memory(self) -> None:
        """Give cached device memory back."""

    def memory(self) -> dict[str, int]:
        """Bytes in use, by kind (`resident_bytes`; on cuda also `allocated_bytes`, `reserved_bytes`, `total_bytes`)."""

    def device_figures(self) -> dict[str, float]:
        """What else the device tells: on cuda what `worker.engines.nvidia` reads, and torch's own counts of allocations that it
        had to try again (`torch_alloc_retries`) or that failed (`torch_ooms`)."""
        return {}

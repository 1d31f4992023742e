"""What turns texts into vectors. Only this package imports torch.

An engine is loaded once per process, in the worker's child. `torch` is the reference; every other engine is measured
against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Tokens:
    """One input as the model sees it."""

    ids: Sequence[int]
    truncated: bool
    """The text was longer than the model's maximum and was cut at its end."""
    prompt_tokens: int = 0
    """Tokens of the prompt that pooling leaves out; inputs of one batch agree in it."""


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
    prompts: tuple[str, ...]
    budget_tokens: int
    """Most tokens in a batch to start with, padding included."""
    parity: float | None = None
    """Worst cosine against float32 torch on the golden texts; None when it was not measured."""


class Engine(Protocol):
    facts: EngineFacts

    def tokenize(self, texts: Sequence[str], prompt_name: str | None) -> list[Tokens]:
        """Each text, with the named prompt of the model in front, as tokens; longer ones cut to `max_tokens`."""

    def embed(self, batch: Sequence[Tokens]) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """Vectors of one batch as the model gives them, float32, (len(batch), dimensions), in the batch's order.

        Raises:
            OutOfMemory: the device cannot hold the batch; the engine stays usable.
        """

    def free_memory(self) -> None:
        """Give cached device memory back."""

    def memory(self) -> dict[str, int]:
        """Bytes in use, by kind (`resident_bytes`; on cuda also `allocated_bytes`, `reserved_bytes`, `total_bytes`)."""

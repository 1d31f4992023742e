"""How much a model computes: what of it is matrix products, and how fast this machine does those."""

import time
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Shape:
    """The sizes of a BERT that decide how much it computes."""

    layers: int
    hidden: int
    intermediate: int

    @classmethod
    def of(cls, module: Any) -> Self | None:
        """The shape of a sentence-transformers model; None when its configuration names the sizes otherwise."""
        config = getattr(getattr(module[0], "auto_model", None), "config", None)
        sizes = [getattr(config, size, None) for size in ("num_hidden_layers", "hidden_size", "intermediate_size")]
        return cls(*sizes) if all(sizes) else None

    @property
    def parameters(self) -> int:
        """Weights in the linear layers; those of the embeddings are looked up, not multiplied."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate)

    def operations(self, tokens: int) -> int:
        """Floating-point operations of the matrix products for one text: linear layers (two for each weight and token) and
        attention (each token with each, once for the scores and once for the values).
        """
        return 2 * self.parameters * tokens + 4 * self.layers * self.hidden * tokens**2


def matrix_rate(seconds: float = 1.0) -> float:
    """GFLOP/s of a float32 matrix product of 1,024 × 1,024 in torch: the machine's own limit."""
    import torch

    left, right = torch.rand(1024, 1024), torch.rand(1024, 1024)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        torch.mm(left, right)
        best = max(best, 2 * 1024**3 / (time.perf_counter() - started) / 1e9)
    return best

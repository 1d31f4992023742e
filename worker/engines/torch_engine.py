"""The reference engine: sentence-transformers on torch, on cpu, cuda or mps."""

import logging
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch

from core.config import Settings
from core.errors import InvalidSetting, OutOfMemory
from worker.engines import EngineFacts, Tokens
from worker.engines.device import resident_bytes
from worker.engines.model import Model

log = logging.getLogger("vector-api")

UNUSED_CACHE_BYTES = 2 * 2**30
"""Device memory that torch may keep without using it before it is given back."""


class TorchEngine:
    """One sentence-transformers model on one device."""

    def __init__(self, model: Model, facts: EngineFacts, empty_cache_tokens: int) -> None:
        self.facts = facts
        self.model = model
        self._empty_cache_tokens = empty_cache_tokens
        self._device = torch.device(facts.device)

    @classmethod
    def load(cls, settings: Settings, device: str) -> Self:
        """The model of the settings on a device (`cpu`, `cuda:N`, `mps`).

        Raises:
            ModelUnavailable: the model cannot be loaded.
            InvalidSetting: torch does not compute in the `DTYPE` asked for.
        """
        dtype = _dtype(settings.dtype, device)
        model = Model.load(settings, device, dtype)
        batch_size = settings.batch_size or (32 if device.startswith("cuda") else 8)
        facts = EngineFacts(
            engine="torch",
            model=model.name,
            revision=model.revision,
            device=device,
            dtype=str(dtype).removeprefix("torch."),
            dimensions=model.dimensions,
            max_tokens=model.max_tokens,
            prompts=tuple(sorted(model.prompts)),
            budget_tokens=batch_size * model.max_tokens,
        )
        return cls(model, facts, settings.empty_cache_tokens)

    def tokenize(self, texts: Sequence[str], prompt_name: str | None) -> list[Tokens]:
        return self.model.tokenize(texts, prompt_name)

    @torch.inference_mode()
    def embed(self, batch: Sequence[Tokens]) -> np.ndarray[Any, np.dtype[np.float32]]:
        padded = self.model.pad(batch)
        tokens = padded["input_ids"].size
        try:
            features: dict[str, Any] = {name: torch.from_numpy(array).to(self._device) for name, array in padded.items()}
            if batch[0].prompt_tokens:
                features["prompt_length"] = batch[0].prompt_tokens
            vectors = self.model.module(features)["sentence_embedding"].float().cpu().numpy()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(f"{self.facts.device} has too little memory for {len(batch)} inputs of {tokens} tokens") from None
        if tokens >= self._empty_cache_tokens or self._unused_bytes() >= UNUSED_CACHE_BYTES:
            self.free_memory()
        found: np.ndarray[Any, np.dtype[np.float32]] = vectors
        return found

    def free_memory(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._device.type == "mps":
            torch.mps.empty_cache()

    def _unused_bytes(self) -> int:
        if self._device.type != "cuda":
            return 0
        return torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)

    def memory(self) -> dict[str, int]:
        found = {"resident_bytes": resident_bytes()}
        if self._device.type == "cuda":
            found |= {
                "allocated_bytes": torch.cuda.memory_allocated(self._device),
                "reserved_bytes": torch.cuda.memory_reserved(self._device),
                "total_bytes": torch.cuda.get_device_properties(self._device).total_memory,
            }
        elif self._device.type == "mps":
            found |= {"allocated_bytes": torch.mps.current_allocated_memory()}
        return found


def _dtype(wanted: str, device: str) -> torch.dtype:
    if wanted == "int8":
        raise InvalidSetting("DTYPE=int8 needs ENGINE=openvino on a cpu", param="DTYPE")
    if wanted == "auto":
        return torch.float16 if device.startswith("cuda") else torch.float32
    found: torch.dtype = getattr(torch, wanted)
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Torch and OpenVINO tell of a full CPU or MPS by a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc"))

"""The reference engine: sentence-transformers on torch, on cpu, cuda or mps."""

import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from transformers import AttentionMaskInterface
from transformers.masking_utils import eager_mask, sdpa_mask

from core.config import Settings
from core.errors import DeviceLost, InvalidSetting, OutOfMemory
from worker.engines import Engine, EngineFacts, Tokens
from worker.engines.device import resident_bytes
from worker.engines.model import Model
from worker.engines.nvidia import Gpu
from worker.engines.unpadded import Unpadded

UNUSED_CACHE_BYTES = 2 * 2**30
"""Device memory that torch may keep without using it before it is given back."""

TORCH_COUNTS = {"alloc_retries": "num_alloc_retries", "ooms": "num_ooms"}
"""Of torch.cuda.memory_stats: allocations that came true when cached memory was given back, and that did not."""

Vectors = np.ndarray[Any, np.dtype[np.float32]]


class TorchEngine(Engine):
    """One sentence-transformers model on one device.

    On cuda `start` returns while the device computes: it copies from pinned memory, launches the forward pass and the copy of its
    vectors back, and asks the device nothing, since an answer comes only after all that was launched before.
    """

    def __init__(self, model: Model, facts: EngineFacts, empty_cache_tokens: int) -> None:
        self.facts = facts
        self.model = model
        self._empty_cache_tokens = empty_cache_tokens
        self._device = torch.device(facts.device)
        self._unpadded = Unpadded(model) if facts.unpadded else None
        cuda = self._device.type == "cuda"
        self._gpu = Gpu(str(torch.cuda.get_device_properties(self._device).uuid)) if cuda else None

    @classmethod
    def load(cls, settings: Settings, device: str) -> Self:
        """The model of the settings on a device (`cpu`, `cuda:N`, `mps`).

        Raises:
            ModelUnavailable: the model cannot be loaded.
            InvalidSetting: torch does not compute in the `DTYPE` asked for, or the model needs padding and `UNPADDED` is set.
        """
        dtype = _dtype(settings.dtype, device)
        cuda = device.startswith("cuda")
        if cuda and settings.unpadded and dtype is torch.float32:
            raise InvalidSetting("UNPADDED=1 needs DTYPE=float16 or bfloat16", param="UNPADDED")
        model = Model.load(settings, device, dtype)
        facts = EngineFacts(
            engine="torch",
            model=model.name,
            revision=model.revision,
            device=device,
            dtype=str(dtype).removeprefix("torch."),
            dimensions=model.dimensions,
            max_tokens=model.max_tokens,
            prompts=dict(sorted(model.prompts.items())),
            budget_tokens=(settings.batch_size or (32 if cuda else 8)) * model.max_tokens,
            unpadded=cuda and settings.unpadded,
            ahead=1 if cuda else 0,
        )
        return cls(model, facts, settings.empty_cache_tokens)

    def tokenize(self, texts: Sequence[str], prompt_name: str | None) -> list[Tokens]:
        return self.model.tokenize(texts, prompt_name)

    def chunks(
        self, texts: Sequence[str], prompt_name: str | None, *, overlap: int = 0, only_last: bool = False
    ) -> list[list[Tokens]]:
        return self.model.chunks(texts, prompt_name, overlap=overlap, only_last=only_last)

    def embed(self, batch: Sequence[Tokens]) -> Vectors:
        return self.start(batch)()

    def start(self, batch: Sequence[Tokens]) -> Callable[[], Vectors]:
        features: dict[str, Any] = self._unpadded.row(batch) if self._unpadded else self.model.pad(batch)
        tokens = features["input_ids"].size
        padded = tokens > sum(len(item.ids) for item in batch)
        if batch[0].prompt_tokens:
            features["prompt_length"] = batch[0].prompt_tokens
        with self._translated(len(batch), tokens), torch.inference_mode():
            features = {name: self._on_device(value) for name, value in features.items()}
            with padding_told(padded):
                vectors = self._on_host(self.model.module(features)["sentence_embedding"].float())

        def result() -> Vectors:
            with self._translated(len(batch), tokens):
                found = vectors()
            if tokens >= self._empty_cache_tokens or self._unused_bytes() >= UNUSED_CACHE_BYTES:
                self.free_memory()  # on cuda this waits for the batches that were started meanwhile
            return found

        return result

    def _on_device(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        tensor = torch.from_numpy(value)
        if self._device.type == "cuda":  # torch keeps pinned memory until the copy is over
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)

    def _on_host(self, vectors: torch.Tensor) -> Callable[[], Vectors]:
        """A call that waits for the vectors; elsewhere than on cuda they are waited for now."""
        if self._device.type != "cuda":
            return vectors.cpu().numpy
        host = torch.empty(vectors.shape, dtype=torch.float32, pin_memory=True)
        host.copy_(vectors, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(self._device))

        def wait() -> Vectors:
            copied.synchronize()
            found: Vectors = host.numpy()
            return found

        return wait

    @contextlib.contextmanager
    def _translated(self, inputs: int, tokens: int) -> Iterator[None]:
        """What torch raises within, as errors of the service."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                traceback.clear_frames(error.__traceback__)  # the pass that failed would keep its tensors while another is tried
                message = f"{self.facts.device} has too little memory for {inputs} inputs of {tokens} tokens"
                raise OutOfMemory(message) from None
            if isinstance(error, torch.AcceleratorError):
                raise DeviceLost(f"{self.facts.device} failed: {str(error).splitlines()[0]}") from error
            raise

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

    def device_figures(self) -> dict[str, float]:
        if self._gpu is None:
            return {}
        counts = torch.cuda.memory_stats(self._device)
        of_torch = {f"torch_{short}": counts.get(name, 0) for short, name in TORCH_COUNTS.items()}
        return of_torch | self._gpu.read()


@contextlib.contextmanager
def padding_told(padded: bool) -> Iterator[None]:
    """Tell transformers whether the batch is padded: to ask the device would wait for all that was launched before."""

    def told(make: Callable[..., torch.Tensor | None]) -> Callable[..., torch.Tensor | None]:
        def mask(*, attention_mask: torch.Tensor | None, **options: Any) -> torch.Tensor | None:
            if not padded:
                attention_mask = None
            elif attention_mask is not None:
                options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
            return make(attention_mask=attention_mask, **options)

        return mask

    makers: dict[str, Callable[..., torch.Tensor | None]] = {"sdpa": sdpa_mask, "eager": eager_mask}
    for name, make in makers.items():
        AttentionMaskInterface.register(name, told(make))
    try:
        yield
    finally:
        for name, make in makers.items():
            AttentionMaskInterface.register(name, make)


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

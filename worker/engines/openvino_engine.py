"""The fast engine on a CPU: the model's own torch modules, converted straight to OpenVINO.

The whole of the model is traced, so pooling, dense layers and normalisation are exactly what its configuration says. The
result lies in the cache folder, keyed by the model's revision and all versions that took part.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from core.config import Settings
from core.errors import OutOfMemory
from worker.engines import Engine, EngineFacts, Tokens
from worker.engines.device import resident_bytes, usable_cpus
from worker.engines.model import Model
from worker.engines.torch_engine import TorchEngine, is_out_of_memory

# OpenVINO's converter reports each use to its makers when this package is there. A service that people run for themselves tells
# nobody; without the package it takes a stub.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
import openvino  # noqa: E402

log = logging.getLogger("vector-api")

LAYOUT = 1
"""Number of this module's way to convert; a change of it makes old cache entries useless."""

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class _Traced(torch.nn.Module):
    """The model with plain tensors for inputs. `pooled_mask` is the attention mask for pooling, which may leave out a prompt."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._parts = torch.nn.ModuleList(model.module)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pooled_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        features: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            features["token_type_ids"] = token_type_ids
        first, *others = self._parts
        features = first(features)
        features["attention_mask"] = pooled_mask
        for part in others:
            features = part(features)
        vectors: torch.Tensor = features["sentence_embedding"]
        return vectors


class OpenVinoEngine(Engine):
    """One model, compiled for this CPU."""

    def __init__(self, model: Model, compiled: Any, facts: EngineFacts) -> None:
        self.facts = facts
        self._model = model
        self._request = compiled.create_infer_request()

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """The model of the settings, converted now or taken from the cache.

        Raises:
            ModelUnavailable: the model cannot be loaded.
            Exception: whatever OpenVINO raises for a model that it cannot convert.
        """
        core = openvino.Core()
        dtype = _dtype(settings.dtype, core)
        model = Model.load(settings, "cpu", torch.float32)
        folder = Path(settings.cache_dir).expanduser() / "openvino" / _key(model, dtype)
        if not (folder / "model.xml").exists():
            _convert(model, dtype, folder)
        compiled = core.compile_model(
            folder / "model.xml",
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",  # THROUGHPUT splits the CPUs into streams and is slower for one caller
                "INFERENCE_PRECISION_HINT": PRECISIONS.get(dtype, "f32"),
                "INFERENCE_NUM_THREADS": settings.torch_threads or usable_cpus(),
                # No CACHE_DIR: a process may read what another has half written, and it would save half a second.
            },
        )
        facts = EngineFacts(
            engine="openvino",
            model=model.name,
            revision=model.revision,
            device="cpu",
            dtype=dtype,
            dimensions=model.dimensions,
            max_tokens=model.max_tokens,
            prompts=dict(sorted(model.prompts.items())),
            budget_tokens=(settings.batch_size or 8) * model.max_tokens,
        )
        return cls(model, compiled, facts)

    def in_torch(self) -> TorchEngine:
        """The same model in float32 torch, until `forget_torch`."""
        return TorchEngine(self._model, replace(self.facts, engine="torch", dtype="float32"), empty_cache_tokens=0)

    def forget_torch(self) -> None:
        """Free what was needed for the conversion only."""
        self._model.forget_weights()

    def tokenize(self, texts: Sequence[str], prompt_name: str | None) -> list[Tokens]:
        return self._model.tokenize(texts, prompt_name)

    def chunks(
        self, texts: Sequence[str], prompt_name: str | None, *, overlap: int = 0, only_last: bool = False
    ) -> list[list[Tokens]]:
        return self._model.chunks(texts, prompt_name, overlap=overlap, only_last=only_last)

    def embed(self, batch: Sequence[Tokens]) -> np.ndarray[Any, np.dtype[np.float32]]:
        features = self._model.pad(batch)
        features["pooled_mask"] = features["attention_mask"]
        if batch[0].prompt_tokens:
            features["pooled_mask"] = features["attention_mask"].copy()
            features["pooled_mask"][:, : batch[0].prompt_tokens] = 0
        try:
            (vectors,) = self._request.infer(features, share_inputs=True).values()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            tokens = features["input_ids"].size
            raise OutOfMemory(f"the cpu has too little memory for {len(batch)} inputs of {tokens} tokens") from None
        return np.array(vectors, dtype=np.float32)

    def free_memory(self) -> None:
        """Nothing to do: OpenVINO keeps only what the largest batch took."""

    def memory(self) -> dict[str, int]:
        return {"resident_bytes": resident_bytes()}


def _dtype(wanted: str, core: openvino.Core) -> str:
    """`auto` is bfloat16 where the CPU computes in it, else float32. Half precision is emulated everywhere and far slower."""
    if wanted == "auto":
        return "bfloat16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "float32"
    return wanted


def _key(model: Model, dtype: str) -> str:
    """Names a cache entry: the model and everything that may change its conversion."""
    packages = ("openvino", "torch", "transformers", "sentence-transformers") + (("nncf",) if dtype == "int8" else ())
    versions = {package: importlib.metadata.version(package) for package in packages}
    weights = "int8" if dtype == "int8" else "float32"
    content = json.dumps([LAYOUT, model.name, model.revision, model.max_tokens, weights, versions], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def _convert(model: Model, dtype: str, folder: Path) -> None:
    """Write the converted model to `folder`, whole or not at all, whoever else does the same."""
    if model.leaves_out_prompts and model.tokenizer.padding_side != "right":
        raise ValueError("the model pads on the left and leaves its prompts out of pooling")
    features = model.pad(model.tokenize(["a short text", "a text that is a little longer than the other"], None))
    example = {name: torch.from_numpy(array) for name, array in features.items()}
    example["pooled_mask"] = example["attention_mask"]
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every branch in transformers' code
        converted = openvino.convert_model(_Traced(model).eval(), example_input=example)
    if dtype == "int8":
        converted = _quantized(converted, model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        openvino.save_model(converted, staged / "model.xml", compress_to_fp16=False)
        os.rename(staged, folder)
    except OSError:
        if not (folder / "model.xml").exists():
            raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _quantized(converted: Any, model: Model) -> Any:
    """The model with 8-bit weights and activations, calibrated on the golden texts."""
    import nncf

    from worker.engines.parity import GOLDEN_TEXTS

    def example(text: str) -> dict[str, Any]:
        features = model.pad(model.tokenize([text], None))
        return features | {"pooled_mask": features["attention_mask"]}

    return nncf.quantize(converted, nncf.Dataset(GOLDEN_TEXTS, example), model_type=nncf.ModelType.TRANSFORMER)

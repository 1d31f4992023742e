"""`python -m doctor.library_probe`: load torch and what is around it, look at its devices and the model's files. Prints JSON.

It never loads the model itself: that may be a download of gigabytes, and a running worker may fill the GPU.
"""

import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import constants

from core.config import DEFAULT_MODEL, Settings
from core.errors import InvalidSetting
from core.models import Model, Models
from worker.engines.device import usable_cpus
from worker.engines.model import LOCAL_COPY, hub_answers


def torch_facts() -> dict[str, Any]:
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else [],
        "mps": torch.backends.mps.is_available(),
        "usable_cpus": usable_cpus(),
        "openvino": _installed("openvino"),
    }


def _gpu(index: int) -> dict[str, Any]:
    found = torch.cuda.get_device_properties(index)
    try:
        free = torch.cuda.mem_get_info(index)[0]
    except (torch.AcceleratorError, RuntimeError):  # another process may use it exclusively
        free = None
    return {"name": found.name, "capability": (found.major, found.minor), "total_bytes": found.total_memory, "free_bytes": free}


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def model_facts(model: Model) -> dict[str, Any]:
    folder, place = _folder(model.name, model.revision)
    return {
        "name": model.name,
        "place": place,
        "cache": constants.HF_HUB_CACHE,
        "cache_writable": _writable(Path(constants.HF_HUB_CACHE)),
        "hub": hub_answers(),
        "offline": bool(constants.HF_HUB_OFFLINE),
    } | ({} if folder is None else _sizes(folder))


def _folder(name: str, revision: str | None) -> tuple[Path | None, str | None]:
    """Where the model's files are, and what kind of place that is."""
    if Path(name).is_dir():
        return Path(name), "folder"
    config = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(config, str):
        return Path(config).parent, "cache"
    spec = importlib.util.find_spec(LOCAL_COPY) if name == DEFAULT_MODEL and revision is None else None
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "model", LOCAL_COPY
    return None, None


def _sizes(folder: Path) -> dict[str, Any]:
    """What the model's own files say of its size."""
    config, sentence = _json(folder / "config.json"), _json(folder / "sentence_bert_config.json")
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return {
        "weights_bytes": weights,
        "stored_bytes": 2 if dtype in ("float16", "bfloat16") else 4,
        "hidden": config.get("hidden_size"),
        "intermediate": config.get("intermediate_size"),
        "max_tokens": sentence.get("max_seq_length") or config.get("max_position_embeddings"),
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _writable(folder: Path) -> bool:
    """Whether the folder, or the first of those above it that is there, can be written."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)


def _models(settings: Settings) -> tuple[Model, ...]:
    """The default model first. Of a MODELS_FILE that cannot be used `doctor` itself tells."""
    try:
        return Models.of(settings).all
    except InvalidSetting:
        return (Model(settings.model_name, revision=settings.model_revision),)


if __name__ == "__main__":
    model, *others = map(model_facts, _models(Settings.from_env()))
    json.dump({"torch": torch_facts(), "model": model, "others": others}, sys.stdout)
    print()

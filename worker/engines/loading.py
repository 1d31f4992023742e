"""Choose and load the engine that the settings ask for, and measure it against float32 torch."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from core.config import Settings
from core.errors import EngineError, ModelUnavailable
from worker.engines import Engine
from worker.engines.device import device_name, resolve_device
from worker.engines.fitting import fit_budget
from worker.engines.parity import parity
from worker.engines.torch_engine import TorchEngine

if TYPE_CHECKING:
    from worker.engines.openvino_engine import OpenVinoEngine

log = logging.getLogger("vector-api")


def load_engine(settings: Settings) -> Engine:
    """The engine of this process, on the resolved device.

    Raises:
        ModelUnavailable: the device is absent or too small, the model cannot be loaded, or the vectors fall below `PARITY_FLOOR`.
    """
    device = resolve_device(settings.device)
    fast = _load_openvino(settings, device)
    engine: Engine = fast or TorchEngine.load(settings, device)
    if settings.parity:
        exact = engine.facts.engine == "torch" and engine.facts.dtype == "float32"
        found = 1.0 if exact else parity(engine, fast.in_torch() if fast else _exact(settings))
        _require_floor(engine, found, settings.parity_floor)
        engine.facts = replace(engine.facts, parity=found)
    if fast:
        fast.forget_torch()
    engine.facts = replace(engine.facts, device_name=device_name(device))
    if device != "cpu":
        fit_budget(engine)
    facts = engine.facts
    shown = "" if facts.parity is None else f", parity {facts.parity:.7f}"
    shown += f", batches of {facts.budget_tokens} tokens at most"
    log.info("loaded %s (%s): %s on %s in %s%s", facts.model, facts.revision, facts.engine, facts.device, facts.dtype, shown)
    return engine


def _load_openvino(settings: Settings, device: str) -> "OpenVinoEngine | None":
    """The OpenVINO engine on a cpu, or None where torch is asked for or has to stand in."""
    if device != "cpu" or settings.engine == "torch":
        if settings.engine == "openvino":
            raise ModelUnavailable(f"ENGINE=openvino computes on a cpu, DEVICE={settings.device} is {device}", param="ENGINE")
        return None
    try:
        from worker.engines.openvino_engine import OpenVinoEngine

        return OpenVinoEngine.load(settings)
    except EngineError:
        raise
    except Exception as error:
        if settings.engine == "openvino":
            raise ModelUnavailable(f"ENGINE=openvino cannot be had: {error}", param="ENGINE") from error
        log.info("computing with torch, OpenVINO cannot be had: %s", (str(error).splitlines() or [type(error).__name__])[0][:200])
        return None


def _exact(settings: Settings) -> TorchEngine:
    """The reference: the same model in float32 torch on the cpu."""
    return TorchEngine.load(replace(settings, dtype="float32"), "cpu")


def _require_floor(engine: Engine, found: float, floor: float) -> None:
    if not found >= floor:
        raise ModelUnavailable(
            f"the vectors of {engine.facts.engine} in {engine.facts.dtype} are too far from float32 torch: "
            f"the worst cosine is {found:.6f}, PARITY_FLOOR is {floor}",
            param="PARITY_FLOOR",
        )

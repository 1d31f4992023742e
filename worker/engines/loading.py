"""Choose and load the engine that the settings ask for, and measure it against float32 torch."""

import logging
from dataclasses import replace

from core.config import Settings
from core.errors import EngineError, ModelUnavailable
from worker.engines import Engine
from worker.engines.device import resolve_device
from worker.engines.parity import parity
from worker.engines.torch_engine import TorchEngine

log = logging.getLogger("vector-api")


def load_engine(settings: Settings) -> Engine:
    """The engine of this process, on the resolved device.

    Raises:
        ModelUnavailable: the device is absent, the model cannot be loaded, or the vectors fall below `PARITY_FLOOR`.
    """
    device = resolve_device(settings.device)
    engine: Engine = _load_openvino(settings, device) or TorchEngine.load(settings, device)
    if settings.parity:
        engine = _measured(engine, settings)
    facts = engine.facts
    shown = "" if facts.parity is None else f", parity {facts.parity:.7f}"
    log.info("loaded %s (%s): %s on %s in %s%s", facts.model, facts.revision, facts.engine, facts.device, facts.dtype, shown)
    return engine


def _load_openvino(settings: Settings, device: str) -> Engine | None:
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


def _measured(engine: Engine, settings: Settings) -> Engine:
    """The engine with its parity among its facts."""
    exact = engine.facts.engine == "torch" and engine.facts.dtype == "float32"
    found = 1.0 if exact else parity(engine, TorchEngine.load(replace(settings, dtype="float32"), "cpu"))
    if not found >= settings.parity_floor:
        raise ModelUnavailable(
            f"the vectors of {engine.facts.engine} in {engine.facts.dtype} are too far from float32 torch: "
            f"the worst cosine is {found:.6f}, PARITY_FLOOR is {settings.parity_floor}",
            param="PARITY_FLOOR",
        )
    engine.facts = replace(engine.facts, parity=found)
    return engine

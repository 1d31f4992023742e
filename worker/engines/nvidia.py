"""What NVIDIA's driver says of one GPU, beside what torch knows: the memory that all use, utilisation, temperature, power.

Read through NVML (package nvidia-ml-py), which asks the driver and starts nothing on the device. Where library or driver are
missing, or the card does not tell something, that is left out.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from worker.log import log


class Gpu:
    """The GPU with this UUID (as torch tells it, without a prefix), which may be an instance that MIG has made of a card.

    By its UUID, as neither `CUDA_VISIBLE_DEVICES` nor the order of devices says which of the driver's it is.
    """

    def __init__(self, uuid: str, load: Callable[[], ModuleType] = lambda: importlib.import_module("pynvml")) -> None:
        self._nvml: Any = None
        try:
            nvml: Any = load()
            nvml.nvmlInit()
            self._find(nvml, uuid)
        except ImportError as error:
            log.info("no utilisation, temperature and power of the GPU: %s (pip install nvidia-ml-py)", error)
        except Exception as error:  # NVMLError, whose class is the library's; or a library older than these calls
            log.info("no utilisation, temperature and power of the GPU: %s: %s", type(error).__name__, error)

    def _find(self, nvml: Any, uuid: str) -> None:
        """Note the device, and the card that it is on: they are the same without MIG."""
        try:
            device = nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
            card = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device)
        except nvml.NVMLError:
            card = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            device = None if _is_divided(nvml, card) else card
        self._nvml, self._device, self._card = nvml, device, card

    def read(self) -> dict[str, float]:
        """What can be found out now.

        `used_bytes` of the whole device, whoever uses them; `utilization_ratio`, the share of the last moment in which any kernel
        ran; `temperature_celsius` and `power_watts` of the card. Of a card that is divided without our knowing in which part we
        are, the first two are left out: they would be those of others.
        """
        nvml = self._nvml
        if nvml is None:
            return {}
        found: dict[str, float] = {}
        facts: dict[str, Callable[[], float | None]] = {
            "used_bytes": lambda: self._device and int(nvml.nvmlDeviceGetMemoryInfo(self._device).used),
            "utilization_ratio": lambda: self._device and nvml.nvmlDeviceGetUtilizationRates(self._device).gpu / 100,
            "temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(self._card, nvml.NVML_TEMPERATURE_GPU),
            "power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(self._card) / 1000,
        }
        for name, read in facts.items():
            try:
                value = read()
            except nvml.NVMLError:  # not of this card, or not now
                continue
            if value is not None:
                found[name] = value
        return found


def _is_divided(nvml: Any, card: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(card)[0])
    except nvml.NVMLError:  # no card for that
        return False

"""What is read of a GPU through NVML, from a stand-in for the library's functions, as there is no GPU where tests run."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from worker.engines.nvidia import Gpu

UUID = "5d7a1f8c-0f11-4c4e-9d52-7b1f4a2e0c11"


class NVMLError(Exception):
    pass


class Nvml:
    """The functions of pynvml that are used, for these devices by UUID; `divided` cards are those that MIG has divided."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *uuids: str, divided: bool = False, refuses: tuple[str, ...] = ()) -> None:
        self.uuids = uuids
        self.divided = divided
        self.refuses = refuses

    def _answer(self, call: str, value: Any) -> Any:
        if call in self.refuses:
            raise NVMLError("Not Supported")
        return value

    def nvmlInit(self) -> None:  # noqa: N802
        self._answer("init", None)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in self.uuids:
            raise NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: str) -> str:  # noqa: N802
        return f"card of {handle}"

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:  # noqa: N802
        return self._answer("mig", [int(self.divided), int(self.divided)])

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:  # noqa: N802
        part = handle.startswith("MIG-")
        return self._answer("memory", SimpleNamespace(used=10 if part else 70, total=20 if part else 80))

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:  # noqa: N802
        if handle.startswith("MIG-"):
            raise NVMLError("Not Supported")
        return self._answer("utilization", SimpleNamespace(gpu=37, memory=5))

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        assert not handle.startswith("MIG-"), "the driver refuses a part of a card"
        return self._answer("temperature", 61)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        assert not handle.startswith("MIG-"), "the driver refuses a part of a card"
        return self._answer("power", 250_500)


CARD = {"temperature_celsius": 61, "power_watts": 250.5}
ALL = CARD | {"used_bytes": 70, "utilization_ratio": 0.37}


@pytest.mark.parametrize(
    ("nvml", "found"),
    [
        pytest.param(Nvml(f"GPU-{UUID}"), ALL, id="card"),
        pytest.param(Nvml(f"GPU-{UUID}", refuses=("mig",)), ALL, id="card that cannot be divided"),
        pytest.param(Nvml("GPU-other", f"MIG-{UUID}"), CARD | {"used_bytes": 10}, id="part of a divided card"),
        pytest.param(Nvml(f"GPU-{UUID}", divided=True), CARD, id="some part of a divided card"),
        pytest.param(
            Nvml(f"GPU-{UUID}", refuses=("power", "utilization")), {"used_bytes": 70, "temperature_celsius": 61}, id="little"
        ),
        pytest.param(Nvml("GPU-other"), {}, id="another card"),
        pytest.param(Nvml(f"GPU-{UUID}", refuses=("init",)), {}, id="no driver"),
    ],
)
def test_what_the_card_tells_is_read_and_nothing_of_another(nvml: Any, found: dict[str, float]) -> None:
    assert Gpu(UUID, lambda: nvml).read() == found


def test_what_the_card_ceases_to_tell_is_left_out() -> None:
    nvml: Any = Nvml(f"GPU-{UUID}")
    gpu = Gpu(UUID, lambda: nvml)
    assert gpu.read() == ALL
    nvml.refuses = ("memory", "utilization", "temperature", "power")
    assert gpu.read() == {}


def missing() -> Any:
    raise ImportError("No module named 'pynvml'")


@pytest.mark.parametrize(
    "load", [pytest.param(missing, id="no library"), pytest.param(lambda: Nvml("GPU-other"), id="no device")]
)
def test_missing_library_or_device_is_told_in_one_line(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        gpu = Gpu(UUID, load)
        assert gpu.read() == gpu.read() == {}
    (record,) = caplog.records
    assert "utilisation" in record.message
    assert record.levelno == logging.INFO


def test_library_itself_finds_no_such_device_and_has_every_function(caplog: pytest.LogCaptureFixture) -> None:
    pynvml = pytest.importorskip("pynvml")
    used = [name for name in vars(Nvml) if name.startswith(("nvml", "NVML"))]
    assert [name for name in used if not hasattr(pynvml, name)] == []
    with caplog.at_level(logging.INFO):
        assert Gpu(UUID).read() == {}
    assert len(caplog.records) == 1

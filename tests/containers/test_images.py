"""What is in the images, and what is not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers.conftest import GPU, build, docker
from tests.processes import ROOT

HARDENED = ["--rm", "--init", "--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]


def config(image: str) -> dict:
    return json.loads(docker("image", "inspect", "--format", "{{json .Config}}", image))


def run(image: str, *command: str, check: bool = True, **environ: str) -> str:
    """Output of a command in a new container, as hardened as in the compose file."""
    options = [part for name, value in environ.items() for part in ("--env", f"{name}={value}")]
    return docker("run", *HARDENED, *options, image, *command, check=check)


def test_dockerfile_has_nothing_for_hadolint_to_say() -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)
    if hadolint is None:
        pytest.skip("hadolint is not installed, and its Python package has no build for this machine")
    done = subprocess.run([hadolint, "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("file", ["docker-compose.yml", "docker-compose.gpu.yml"])
def test_compose_accepts_its_files(file: str) -> None:
    found = json.loads(docker("compose", "-f", file, "config", "--format", "json"))
    assert {"redis", "api", "worker"} <= set(found["services"])
    assert ("worker-gpu" in found["services"]) == (file == "docker-compose.gpu.yml")


@pytest.mark.parametrize("base", ["cpu", "gpu"])
def test_base_image_switches_the_variant(base: str) -> None:
    image = build(f"vector-api-test:{base}-variant", "--target", "variant", "--build-arg", f"BASE_IMAGE={base}-base")
    assert f"VARIANT={base}" in config(image)["Env"]


def test_base_image_is_cpu_when_nothing_is_said() -> None:
    assert "VARIANT=cpu" in config(build("vector-api-test:variant", "--target", "variant"))["Env"]


def test_cpu_image_holds_no_cuda(cpu_image: str) -> None:
    assert run(cpu_image, "python", "-c", "import torch; print(torch.version.cuda)").split() == ["None"]
    names = " -o ".join(f"-name '{name}*.so*'" for name in ("libcud", "libcublas", "libnccl", "libnvrtc", "libtorch_cuda"))
    assert run(cpu_image, "sh", "-c", f"find / -xdev \\( {names} -o -path '*/nvidia/*.so*' \\) 2>/dev/null; true") == ""


@pytest.mark.parametrize("name", ["cpu_image", "api_image", "flower_image"])
def test_image_has_no_root_no_compiler_no_health_check_and_code_it_cannot_change(
    name: str, request: pytest.FixtureRequest
) -> None:
    image = request.getfixturevalue(name)
    assert config(image)["User"] == "10001:10001"
    assert not config(image).get("Healthcheck")
    assert run(image, "sh", "-c", "command -v gcc cc g++ make || echo none").split() == ["none"]
    assert run(image, "sh", "-c", "id -u; test -w /app || test -w /opt/venv || echo closed").split() == ["10001", "closed"]
    assert "org.opencontainers.image.version" in config(image)["Labels"]


def test_api_image_is_small_and_holds_no_torch(api_image: str) -> None:
    found = run(
        api_image, "python", "-c", "from importlib.util import find_spec as f; print(f('torch'), f('transformers'), f('worker'))"
    )
    assert found.split() == ["None", "None", "None"]
    base = int(docker("image", "inspect", "--format", "{{.Size}}", build("vector-api-test:common", "--target", "common")))
    added = int(docker("image", "inspect", "--format", "{{.Size}}", api_image)) - base
    assert added < 125e6, f"the API adds {added / 1e6:.0f} MB to its Python image of {base / 1e6:.0f} MB"


def test_doctor_runs_in_both_images(cpu_image: str, api_image: str) -> None:
    assert "ok       torch       torch 2" in run(cpu_image, "python", "-m", "doctor", check=False)
    assert "ok       torch       not installed" in run(api_image, "python", "-m", "doctor", check=False)


def test_device_is_chosen_at_run_time_and_an_absent_one_is_named(cpu_image: str) -> None:
    found = run(cpu_image, "python", "-m", "doctor", check=False, DEVICE="cuda")
    assert "failure  driver      DEVICE=cuda, but there is no NVIDIA driver here" in found


@pytest.mark.skipif(not GPU, reason="`make test-containers GPU=1` builds the GPU image, too: 2.5 GB to download")
def test_gpu_image_holds_a_cuda_build_of_torch() -> None:
    image = build("vector-api:gpu", "--build-arg", "BASE_IMAGE=gpu-base")
    version = run(image, "python", "-c", "import torch; print(torch.version.cuda)")
    assert version.split()[0].split(".")[0].isdigit()
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in config(image)["Env"]

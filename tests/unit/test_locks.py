"""The locks that images are built from agree with the requirements files."""

import importlib.metadata
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.processes import ROOT

GPU_ONLY = "nvidia-ml-py"
"""What the GPU image has beside what all workers have."""

LOCKS = sorted(path.stem for path in ROOT.glob("requirements*.lock"))


def left_out(name: str) -> bool:
    """Whether `make lock` leaves it out: torch, and what its CUDA build brings."""
    return name in ("torch", "triton") or (name.startswith(("nvidia-", "cuda-")) and name != GPU_ONLY)


def wanted(stem: str) -> list[Requirement]:
    """The lines of a requirements file and of those it includes."""
    found = []
    for line in (ROOT / f"{stem}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            found += wanted(line.removeprefix("-r ").removesuffix(".txt"))
        elif line and not line.startswith("#"):
            found.append(Requirement(line))
    return found


def locked(stem: str) -> dict[str, list[Requirement]]:
    """The requirements of a lock by name; a name may stand there twice, for different versions of Python."""
    text = (ROOT / f"{stem}.lock").read_text(encoding="utf-8").replace("\\\n", "")
    found: dict[str, list[Requirement]] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        requirement, *hashes = re.split(r"\s+--hash=", line.strip())
        assert hashes, line
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), line
        parsed = Requirement(requirement)
        assert re.fullmatch(r"==[\w.]+", str(parsed.specifier)), line
        found.setdefault(canonicalize_name(parsed.name), []).append(parsed)
    return found


def applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def test_every_image_has_its_lock() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = dockerfile.replace("\\\n", "").splitlines()
    copied = re.findall(r"requirements[a-z-]*\.lock", " ".join(line for line in lines if line.startswith("COPY")))
    assert set(copied) == {f"{stem}.lock" for stem in LOCKS}
    assert dockerfile.count("--no-deps --require-hashes") == 3


@pytest.mark.parametrize("stem", LOCKS)
def test_lock_holds_the_versions_of_its_requirements_file(stem: str) -> None:
    lock = locked(stem)
    assert [name for name in lock if left_out(name)] == []
    for requirement in wanted(stem):
        if not left_out(requirement.name):
            assert [found.specifier for found in lock[canonicalize_name(requirement.name)]] == [requirement.specifier]


@pytest.mark.parametrize("stem", LOCKS)
def test_lock_names_all_that_its_packages_need(stem: str) -> None:
    """By what the packages installed here say of themselves; `make lock` writes the locks anew."""
    lock = locked(stem)
    for name, found in lock.items():
        if not any(map(applies, found)):
            continue
        try:
            needs = [Requirement(need) for need in importlib.metadata.requires(name) or []]
        except importlib.metadata.PackageNotFoundError:
            continue
        for need in needs:
            needed = canonicalize_name(need.name)
            if applies(need) and not left_out(needed):
                assert any(map(applies, lock.get(needed, []))), f"{name} needs {need}"


def test_locks_agree() -> None:
    largest = locked("requirements")
    for stem in ("requirements-api", "requirements-gpu"):
        others = {name: found for name, found in locked(stem).items() if largest.get(name) != found}
        assert set(others) == ({GPU_ONLY} if stem == "requirements-gpu" else set())
    shared = set(locked("requirements-flower")) & set(largest)
    assert {name for name in shared if locked("requirements-flower")[name] != largest[name]} == set()

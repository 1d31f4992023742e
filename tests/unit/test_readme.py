"""What the README says is so."""

import re
from dataclasses import fields

import pytest

from core.config import Settings
from tests.processes import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTING = re.compile(r"^\| `([A-Z_]+)` \| (?:`([^`]*)`)? ?\| (.+) \|$", re.MULTILINE)


def test_settings_table_lists_every_setting_in_order() -> None:
    assert [name for name, _, _ in SETTING.findall(README)] == [field.name.upper() for field in fields(Settings)]


@pytest.mark.parametrize(("name", "default", "meaning"), SETTING.findall(README))
def test_settings_table_tells_the_default(name: str, default: str, meaning: str) -> None:
    stated = Settings.from_env({name: default})
    assert getattr(stated, name.lower()) == getattr(Settings(), name.lower())
    assert default or getattr(Settings(), name.lower()) is None
    assert meaning


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = re.findall(r"^make (.+)$", README, re.MULTILINE) + re.findall(r"`(?:[A-Z_]+=\S+ )?make ([a-z-]+)", README)
    named = {target for line in commands for target in line.split() if "=" not in target}
    assert {"demo", "run", "test"} <= named <= targets


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_torch_has_one_version() -> None:
    files = [README, *(path.read_text(encoding="utf-8") for path in ROOT.glob("requirements*.txt"))]
    found = [version for text in files for version in re.findall(r"torch==(\S+)", text)]
    assert len(found) >= 3
    assert len(set(found)) == 1


def test_requirements_are_exact_and_name_no_index() -> None:
    for path in ROOT.glob("requirements*.txt"):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
        options = [line for line in lines if line.startswith("-")]
        assert all(re.fullmatch(r"-r requirements[a-z-]*\.txt|-e clients/python", line) for line in options), path
        assert all("==" in line for line in lines if line not in options), path

"""docs/reliability.md names tests that exist."""

import re

from tests.processes import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_test_that_the_page_names_exists_and_every_fault_is_on_it() -> None:
    named = set(re.findall(r"`([a-z_/]+\.py)::(test_\w+)`", PAGE))
    assert len(named) > 30
    defined = {
        (path.relative_to(ROOT / "tests").as_posix(), name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named <= defined, named - defined
    assert {found for found in defined if found[0].startswith("faults/")} <= named

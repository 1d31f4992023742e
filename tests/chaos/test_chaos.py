"""A short run; `make chaos` is the long one."""

from pathlib import Path

import pytest

from tests.chaos.run import Run

pytestmark = pytest.mark.integration


@pytest.mark.timeout(400)
def test_nothing_is_lost_or_doubled_whatever_is_killed(tmp_path: Path) -> None:
    with Run(tmp_path, seed=7) as run:
        run.kill_at_random(20, 1.0)
        verdict = run.verdict()
    assert verdict.good, str(verdict)
    assert verdict.committed > 1000

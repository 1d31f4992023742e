"""Other people's clients, unmodified, in environments of their own. Only `make test-clients` installs and runs most of them."""

import os
from pathlib import Path

import pytest

from tests.processes import ROOT

CLIENTS = ROOT / ".venv-clients"
WANTED = os.environ.get("TEST_CLIENTS") == "1"
NOT_WANTED = "needs clients that take 650 MB; `make test-clients` does it and runs this"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("clients") and not WANTED:
            item.add_marker(pytest.mark.skip(reason=NOT_WANTED))


@pytest.fixture(scope="session")
def clients() -> Path:
    """The environment of the clients."""
    assert (CLIENTS / ".ready").exists(), "`make test-clients` installs the clients"
    return CLIENTS

"""What the tests of the page share. A browser is a module's own: while it lives, no other test can run an event loop."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from launcher.redis_server import RedisServer
from tests.browser.pages import AXE, CHROMIUM, Visit, chromium
from tests.conftest import QUICK
from tests.processes import Stack, running_stack

MISSING = "needs Chromium and axe: `apt-get install chromium npm`, then `npm ci --prefix tests/browser`"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if (CHROMIUM and AXE.exists()) or "CI" in os.environ:
        return
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def api_environ() -> dict[str, str]:
    """Settings of the module's processes; a module overrides this for others."""
    return {}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, api_environ: dict[str, str]) -> Iterator[Stack]:
    """An API on a Redis server of the module's own."""
    folder = tmp_path_factory.mktemp("browser")
    with RedisServer(folder / "redis", {"appendfsync": "no"}) as server:
        for found in running_stack(server.url, folder, QUICK | api_environ):
            found.api()
            yield found


@pytest.fixture
def visit(browser: Browser, stack: Stack) -> Iterator[Callable[..., Visit]]:
    """Begins visits, and ends them with the test; one that did anything wrong fails it, but for what it was `allowed`."""
    visits: list[tuple[Visit, str]] = []

    def begin(*, base_url: str = stack.base_url, allowed: str = "", **options: Any) -> Visit:
        visits.append((Visit(browser, base_url, **options), allowed))
        return visits[-1][0]

    yield begin
    for begun, allowed in visits:
        begun.close(allowed=allowed)

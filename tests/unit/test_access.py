"""Who is let in, how keys change without a restart, and what every answer carries."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import fakeredis
import pytest
from flask.testing import FlaskClient

from api import create_app
from api.access import FIGURES, OPEN, KeyFile, duration, require_closed
from api.answers import SECURITY_HEADERS
from core.config import Settings
from core.errors import InvalidSetting, Unauthorized
from core.keys import digest_of
from core.ledger import Ledger

KEY = "va_alice"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"alice:{digest_of(KEY)}\n")
    return path


@pytest.fixture
def client(file: Path) -> FlaskClient:
    return client_of(API_KEYS_FILE=str(file))


def client_of(**environ: str) -> FlaskClient:
    return create_app(Settings.from_env(environ), ledger=Ledger(fakeredis.FakeRedis(), "test:")).test_client()


def rewrite(file: Path, content: str) -> None:
    """As an editor does: another file in its place."""
    new = file.with_suffix(".new")
    new.write_text(content)
    os.replace(new, file)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1"),
        ("GET", "/readyz"),
        ("GET", "/v1/queues"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/org/model"),
        ("GET", "/v1/jobs"),
        ("POST", "/v1/jobs"),
        ("OPTIONS", "/v1/jobs"),
        ("GET", "/v1/jobs/x"),
        ("DELETE", "/v1/jobs/x"),
        ("POST", "/v1/jobs/x/cancel"),
        ("GET", "/v1/jobs/x/result"),
        ("GET", "/nope"),
        ("PUT", "/v1/jobs"),
        ("POST", "/healthz"),
    ],
)
@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_api_key"),
        ("", "missing_api_key"),
        ("Bearer", "missing_api_key"),
        ("Bearer  ", "missing_api_key"),
        ("Basic dXNlcjpwYXNz", "missing_api_key"),
        (KEY, "missing_api_key"),
        ("Bearer va_mallory", "invalid_api_key"),
        (f"Bearer {KEY}x", "invalid_api_key"),
        (f"Bearer {digest_of(KEY)}", "invalid_api_key"),
        ("Bearer \xe4\xff", "invalid_api_key"),
    ],
)
def test_everything_but_healthz_needs_a_key(client: FlaskClient, method: str, path: str, header: str | None, code: str) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = client.open(path, method=method, headers=headers)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    error = answer.get_json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert answer.headers["x-should-retry"] == "false"
    assert "mallory" not in answer.text


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", f"  BEARER   {KEY} "])
def test_key_lets_in(client: FlaskClient, header: str) -> None:
    assert client.get("/v1/queues", headers={"Authorization": header}).status_code == 200


def test_key_that_watches_sees_figures_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"prometheus:{digest_of(KEY)}:watch\n")
    client = client_of(API_KEYS_FILE=str(tmp_path / "keys"))
    mine = {"Authorization": f"Bearer {KEY}"}
    for path in ("/metrics", "/v1/queues", "/v1/models", "/readyz", "/healthz"):
        assert client.get(path, headers=mine).status_code == 200, path
    assert client.get("/v1/models/org/model", headers=mine).status_code == 404
    for rule in client.application.url_map.iter_rules():
        answer = client.open(rule.build(dict.fromkeys(rule.arguments, "x"))[1], method=min(rule.methods or ()), headers=mine)
        if rule.endpoint not in FIGURES | OPEN:
            error = answer.get_json()["error"]
            assert (answer.status_code, error["code"]) == (403, "key_only_watches"), rule
    assert client.get("/nope", headers=mine).status_code == 403


def test_healthz_is_open_and_without_keys_everything_is() -> None:
    assert client_of().get("/v1/jobs", headers={"Authorization": "Bearer whatever"}).status_code == 200


def test_healthz_is_open(client: FlaskClient) -> None:
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("path", ["/v1", "/healthz", "/v1/jobs", "/nope", "/v1/jobs/x/result", "/boom"])
def test_every_answer_has_the_security_headers(client: FlaskClient, path: str) -> None:
    client.application.add_url_rule("/boom", view_func=lambda: 1 / 0)
    for headers in ({}, {"Authorization": f"Bearer {KEY}"}):
        answer = client.get(path, headers=headers)
        assert {name: answer.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS


# The file of the keys ---------------------------------------------------------------------------------------------------


def admits(keys: KeyFile, key: str) -> bool:
    try:
        return bool(keys.owner_of(f"Bearer {key}"))
    except Unauthorized:
        return False


@pytest.mark.parametrize("change", [rewrite, lambda file, content: file.write_text(content)], ids=["replaced", "written"])
def test_changed_file_is_read_within_a_second(file: Path, clock: Clock, change: Callable[[Path, str], object]) -> None:
    keys = KeyFile(file, clock=clock)
    change(file, f"bob:{digest_of('va_bob')}\nbob:{digest_of('va_bob2')}\n")
    clock.now = 0.9
    assert (admits(keys, KEY), admits(keys, "va_bob")) == (True, False)
    clock.now = 1.0
    assert (admits(keys, KEY), admits(keys, "va_bob"), admits(keys, "va_bob2")) == (False, True, True)


@pytest.mark.parametrize("broken", ["nonsense", None])
def test_broken_file_keeps_the_keys_and_says_so_once(
    file: Path, clock: Clock, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    keys = KeyFile(file, clock=clock)
    if broken is None:
        file.unlink()
    else:
        rewrite(file, broken)
    for clock.now in (1.0, 2.0, 3.0):
        assert admits(keys, KEY)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "API_KEYS_FILE" in record.message
    assert "stay valid" in record.message
    rewrite(file, f"bob:{digest_of('va_bob')}")
    clock.now = 4.0
    assert (admits(keys, KEY), admits(keys, "va_bob")) == (False, True)


def test_emptied_file_lets_nobody_in(file: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    keys = KeyFile(file, clock=clock)
    file.write_text("")
    clock.now = 1.0
    assert not admits(keys, KEY)
    assert "0 keys are valid now" in caplog.text


@pytest.mark.parametrize("content", ["", "# no key\n", "nonsense"])
def test_application_does_not_start_with_a_file_without_keys(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(InvalidSetting, match="API_KEYS_FILE"):
        client_of(API_KEYS_FILE=str(file))


# Addresses and figures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_needs_no_key(address: str) -> None:
    require_closed(Settings(), (address, 8000))


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.2", "fe80::1%eth0", "203.0.113.7"])
def test_other_address_needs_keys_or_leave(address: str) -> None:
    with pytest.raises(InvalidSetting, match=r"API_HOST=somewhere can be reached by others.*API_KEYS_FILE.*ALLOW_ANONYMOUS=1"):
        require_closed(Settings(api_host="somewhere"), (address, 8000))
    require_closed(Settings(api_keys_file="keys"), (address, 8000))
    require_closed(Settings(allow_anonymous=True), (address, 8000))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (0.0201, "21ms"), (0.25, "250ms"), (1, "1s"), (1.5, "1.5s"), (60, "1m0s"), (86.4, "1m26.4s"), (360, "6m0s")],
)
def test_durations_are_written_as_clients_of_openai_know_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_lines_name_a_tenant_once_it_is_known(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "api.requests")

    def tenants_of(client: FlaskClient, path: str, **headers: str) -> str:
        client.get(path, headers=headers).close()
        found: str = caplog.records[-1].__dict__["tenant"]
        return found

    assert tenants_of(client, "/v1") == ""
    assert tenants_of(client, "/v1", Authorization="Bearer wrong") == ""
    assert tenants_of(client, "/healthz") == ""
    assert tenants_of(client, "/v1", Authorization=f"Bearer {KEY}") == "alice"
    assert tenants_of(client_of(), "/healthz") == "default"

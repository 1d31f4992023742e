"""Where the service's own requests may go, and that they end in time."""

import ipaddress
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from ssl import PROTOCOL_TLS_SERVER, SSLContext, create_default_context

import pytest
import trustme

from api.outbound import NotSent, Outbound, is_public
from tests.webhook_receiver import PATH, Receiver, receiving

LOOPBACK = ("127.0.0.0/8",)


class Resolver:
    """Gives another answer each time it is asked; the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, **_options: object) -> list[tuple[object, ...]]:
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answer]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def post(url: str, outbound: Outbound, seconds: float = 5) -> int:
    return outbound.post(url, b"{}", {"webhook-id": "evt_1"}, timeout_seconds=seconds)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("2002:808:808::1", True),
        ("0.0.0.0", False),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::127.0.0.1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff0e::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b:1::1", False),
        ("2002:a00:1::1", False),
        ("2001:0:1::1", False),
    ],
)
def test_public_addresses_are_told_from_others_also_in_disguise(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public
    assert Outbound().allows(ipaddress.ip_address(address), "https") is public
    assert not Outbound().allows(ipaddress.ip_address(address), "http")


def test_allowed_network_is_allowed_with_and_without_tls_and_no_other_is() -> None:
    outbound = Outbound(["10.0.0.0/8", "fd00::/8"])
    for address in ("10.1.2.3", "fd00::1", "::ffff:10.1.2.3"):
        assert outbound.allows(ipaddress.ip_address(address), "http")
        assert outbound.allows(ipaddress.ip_address(address), "https")
    assert not outbound.allows(ipaddress.ip_address("192.168.0.1"), "https")
    assert not outbound.allows(ipaddress.ip_address("8.8.8.8"), "http")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_private_address_is_refused_however_it_is_written(receiver: Receiver, scheme: str, host: str) -> None:
    with pytest.raises(NotSent, match="address_not_allowed"):
        post(f"{scheme}://{host}:{receiver.port}/", Outbound())
    assert receiver.tried == []


def test_one_private_address_among_others_is_enough_to_refuse(receiver: Receiver) -> None:
    resolver = Resolver(["8.8.8.8", "127.0.0.1"])
    with pytest.raises(NotSent, match="address_not_allowed"):
        post(f"https://hooks.example:{receiver.port}/", Outbound(resolve=resolver))


def test_name_that_changes_its_answer_leads_to_the_address_that_was_checked(receiver: Receiver) -> None:
    resolver = Resolver(["127.0.0.1"], ["10.0.0.1"])
    assert post(f"http://hooks.example:{receiver.port}{PATH}", Outbound(LOOPBACK, resolve=resolver)) == 204
    assert resolver.asked == ["hooks.example"]
    (tried,) = receiver.tried
    assert (tried.path, tried.headers["host"]) == (PATH, f"hooks.example:{receiver.port}")


def test_next_address_is_tried_when_one_does_not_listen(receiver: Receiver) -> None:
    resolver = Resolver(["127.0.0.2", "127.0.0.1"])
    assert post(f"http://hooks.example:{receiver.port}/", Outbound(LOOPBACK, resolve=resolver)) == 204


@pytest.mark.parametrize("status", [301, 307, 308])
def test_redirect_is_an_answer_and_not_followed(receiver: Receiver, status: int) -> None:
    receiver.answer = status
    assert post(receiver.url, Outbound(LOOPBACK)) == status
    assert [tried.path for tried in receiver.tried] == [PATH]


def test_proxies_of_the_environment_are_not_asked(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert post(receiver.url, Outbound(LOOPBACK)) == 204


def test_receiver_that_hangs_or_drips_is_cut_off_in_time(receiver: Receiver) -> None:
    def hang(_handler: BaseHTTPRequestHandler) -> None:
        time.sleep(2)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        for n in range(20):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nx: "[n % 20 : n % 20 + 1])
            time.sleep(0.1)

    for receiver.answer in (hang, drip):
        began = time.monotonic()
        with pytest.raises(NotSent, match="timeout"):
            post(receiver.url, Outbound(LOOPBACK), seconds=0.5)
        assert time.monotonic() - began < 1.5


def test_nobody_there_is_told_in_a_word_that_shows_no_url(receiver: Receiver) -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.connection.shutdown(socket.SHUT_RDWR)

    def unknown(*_args: object, **_options: object) -> list[tuple[object, ...]]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    receiver.answer = cut
    with pytest.raises(NotSent, match=r"^connection_failed$"):
        post(receiver.url, Outbound(LOOPBACK))
    with pytest.raises(NotSent, match=r"^connection_failed$"):
        post("http://127.0.0.1:1/secret", Outbound(LOOPBACK))
    with pytest.raises(NotSent, match=r"^name_not_resolved$"):
        post("https://no.such.name.invalid/secret", Outbound(resolve=unknown))
    with pytest.raises(NotSent, match=r"^tls_failed$"):
        post(f"https://127.0.0.1:{receiver.port}/", Outbound(LOOPBACK))


def test_certificate_must_be_for_the_name_and_by_a_trusted_authority() -> None:
    authority = trustme.CA()
    server = SSLContext(PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.example").configure_cert(server)
    trusting = create_default_context()
    authority.configure_trust(trusting)
    resolver = Resolver(["127.0.0.1"])
    with receiving(tls=server) as receiver:
        url = f"https://hooks.example:{receiver.port}/"
        assert post(url, Outbound(LOOPBACK, resolve=resolver, context=trusting)) == 204
        for wrong, outbound in (
            (url, Outbound(LOOPBACK, resolve=resolver)),
            (url.replace("hooks", "other"), Outbound(LOOPBACK, resolve=resolver, context=trusting)),
        ):
            with pytest.raises(NotSent, match=r"^tls_failed$"):
                post(wrong, outbound)
        assert len(receiver.tried) == 1

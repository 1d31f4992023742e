"""Requests that the service itself makes, to addresses that a file names: never into a private network that was not allowed.

The name is resolved once, every address it has is checked, and the connection goes to one of these: a name that changes its
answer afterwards changes nothing. Redirects are not followed, proxies of the environment not asked.
"""

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from http.client import HTTPException
from typing import Any
from urllib.parse import SplitResult, urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError
from urllib3.exceptions import SSLError as TlsError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[..., Sequence[tuple[Any, ...]]]
"""As `socket.getaddrinfo`."""

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""Where IPv4 addresses lie in a network that has IPv6 only (RFC 6052)."""

MOST_ADDRESSES = 4
"""That are tried, one after the other."""


class NotSent(Exception):
    """There is no answer; `args[0]` is a word for the reason. It shows nothing of the URL."""


def reached(address: Address) -> Address:
    """What a connection to the address reaches: an IPv6 address may carry one of IPv4."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF) if address in NAT64 else address.ipv4_mapped or address.sixtofour
    return inner or address


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet's, and no other kind in disguise."""
    found = reached(address)
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)


class Outbound:
    """Posts to public addresses, and to those of the networks that are allowed beside them.

    Args:
        networks: allowed beside the public ones; to these alone also without TLS.
        resolve: what finds a name's addresses.
        context: whose certificates are trusted; by default the system's, or those of `SSL_CERT_FILE`.
    """

    def __init__(
        self, networks: Sequence[str] = (), *, resolve: Resolve = socket.getaddrinfo, context: ssl.SSLContext | None = None
    ) -> None:
        self._networks: list[Network] = [ipaddress.ip_network(network) for network in networks]
        self._resolve = resolve
        self._given = context

    @cached_property
    def _context(self) -> ssl.SSLContext:
        return self._given or ssl.create_default_context()  # which takes a while: not before there is something to send

    def post(self, url: str, body: bytes, headers: Mapping[str, str], *, timeout_seconds: float) -> int:
        """The status of the answer, whose body is not read. It takes `timeout_seconds` at most, once the name is resolved.

        Raises:
            NotSent: there is none.
        """
        parts = urlsplit(url)
        addresses = self._addresses(parts)
        deadline = time.monotonic() + timeout_seconds
        for left in range(len(addresses), 0, -1):
            seconds = (deadline - time.monotonic()) / left
            try:
                return self._exchange(parts, addresses[-left], body, headers, max(0.1, seconds), deadline)
            except (ConnectTimeoutError, NewConnectionError) as error:
                if left == 1:
                    raise NotSent("connection_failed" if isinstance(error, NewConnectionError) else "timeout") from None
        raise NotSent("name_not_resolved")

    def _addresses(self, parts: SplitResult) -> list[str]:
        try:
            found = self._resolve(parts.hostname, parts.port or _default_port(parts), type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise NotSent("name_not_resolved") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not all(self.allows(ipaddress.ip_address(address.partition("%")[0]), parts.scheme) for address in addresses):
            raise NotSent("address_not_allowed")
        return addresses[:MOST_ADDRESSES]

    def allows(self, address: Address, scheme: str) -> bool:
        """Whether a URL of this scheme may lead to the address."""
        listed = any(reached(address) in network for network in self._networks)
        return listed or (scheme == "https" and is_public(address))

    def _exchange(
        self, parts: SplitResult, address: str, body: bytes, headers: Mapping[str, str], seconds: float, deadline: float
    ) -> int:
        connection = self._connection(parts, address, seconds)
        end = threading.Timer(0, _cut, [connection])  # a timeout of the socket begins again with every byte that comes
        try:
            connection.connect()
            connection.timeout = max(0.1, deadline - time.monotonic())
            connection.sock.settimeout(connection.timeout)
            end.interval = connection.timeout
            end.start()
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", target, body, {**headers, "Host": parts.netloc}, preload_content=False)
            return connection.getresponse().status
        except (ConnectTimeoutError, NewConnectionError):
            raise
        except (ssl.SSLError, TlsError):
            raise NotSent("tls_failed") from None
        except (OSError, HTTPError, HTTPException, ValueError) as error:
            late = isinstance(error, TimeoutError) or time.monotonic() >= deadline
            raise NotSent("timeout" if late else "connection_failed") from None
        finally:
            end.cancel()
            connection.close()

    def _connection(self, parts: SplitResult, address: str, seconds: float) -> HTTPConnection:
        port = parts.port or _default_port(parts)
        if parts.scheme == "http":
            return HTTPConnection(address, port, timeout=seconds)
        return HTTPSConnection(address, port, timeout=seconds, ssl_context=self._context, server_hostname=parts.hostname)


def _default_port(parts: SplitResult) -> int:
    return 443 if parts.scheme == "https" else 80


def _cut(connection: HTTPConnection) -> None:
    with suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)

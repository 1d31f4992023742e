"""Token ids are of a known encoding, or the API does not start. How they are decoded is tested on the real API."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.token_ids import decode, load
from core.errors import InvalidRequest, InvalidSetting
from tests.processes import ROOT, free_port


def test_ids_without_an_encoding_are_refused_with_the_way_out() -> None:
    with pytest.raises(
        InvalidRequest, match=r"input\[3\] holds token ids.*TOKEN_ENCODING.*check_embedding_ctx_length=False"
    ) as found:
        decode(None, [1, 2], "input[3]")
    assert (found.value.param, found.value.code) == ("input[3]", "token_ids_not_supported")


def test_unknown_encoding_is_told_with_the_known_ones() -> None:
    with pytest.raises(InvalidSetting, match=r"TOKEN_ENCODING, .* is unknown; known are .*cl100k_base.*, got 'no_such'"):
        load("no_such")


@pytest.fixture
def silent_proxy() -> Iterator[str]:
    """A proxy that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_download_that_never_comes_is_given_up(silent_proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", silent_proxy)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    begun = time.monotonic()
    with pytest.raises(InvalidSetting, match=r"cl100k_base could not be loaded.*within 0.2 s.*TIKTOKEN_CACHE_DIR"):
        load("cl100k_base", seconds=0.2)
    assert time.monotonic() - begun < 10


def test_api_without_the_encoding_does_not_start_and_says_why(tmp_path: Path) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "HTTPS_PROXY": f"http://127.0.0.1:{free_port()}",
        "TIKTOKEN_CACHE_DIR": str(tmp_path),
        "TOKEN_ENCODING": "cl100k_base",
    }
    done = subprocess.run(
        [sys.executable, "-m", "api"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("vector-api: the encoding of token ids cl100k_base could not be loaded (ProxyError")
    assert done.stderr.count("\n") == 1, done.stderr

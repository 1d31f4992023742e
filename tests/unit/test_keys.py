"""API keys: the file they are in, and the command that makes them."""

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import InvalidSetting
from core.keys import Keys, Owner, append, digest_of
from tests.processes import ROOT

ALICE, BOB = digest_of("alice's"), digest_of("bob's")


def written(folder: Path, content: str | bytes) -> Path:
    file = folder / "keys"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def test_digest_is_what_sha256sum_prints() -> None:
    assert digest_of("va_abc") == hashlib.sha256(b"va_abc").hexdigest()


def test_file_may_have_comments_blank_lines_and_several_keys_of_a_tenant(tmp_path: Path) -> None:
    content = f"# ours\n\nalice:{ALICE}\r\n  bob:{BOB.upper()}  \nalice:{digest_of('another of hers')}\n"
    keys = Keys.read(written(tmp_path, content))
    found = [keys.owner_of(key) for key in ("alice's", "another of hers", "bob's", "mallory's", "", ALICE)]
    assert found == [Owner("alice"), Owner("alice"), Owner("bob"), None, None, None]
    assert len(keys) == 3


def test_key_may_be_for_watching_alone(tmp_path: Path) -> None:
    keys = Keys.read(written(tmp_path, f"alice:{ALICE}:watch\nbob:{BOB}\n"))
    assert keys.owner_of("alice's") == Owner("alice", watches=True)
    assert keys.owner_of("bob's") == Owner("bob", watches=False)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (f"alice:{ALICE}:look", "has a line 1 that is not tenant:sha256"),
        (f"alice:{ALICE}:watch\nalice:{ALICE}", "gives the key of line 2 to another tenant, or other rights, as well"),
        (f"alice:{ALICE}\nva_a-key-in-the-wrong-place", "has a line 2 that is not tenant:sha256"),
        (f"alice:{ALICE}\nalice:va_a-key-in-the-wrong-place", "has a line 2 that is not tenant:sha256"),
        (f"alice:{ALICE[:-1]}", "has a line 1 that is not tenant:sha256"),
        (f"alice/bob:{ALICE}", "has a line 1 that is not tenant:sha256"),
        (f":{ALICE}", "has a line 1 that is not tenant:sha256"),
        (f"{'a' * 65}:{ALICE}", "has a line 1 that is not tenant:sha256"),
        (f"alice:{ALICE}\n\nbob:{ALICE}", "gives the key of line 3 to another tenant, or other rights, as well"),
        (b"\xff\xfe", "cannot be read (not UTF-8)"),
    ],
)
def test_broken_file_is_told_by_line_and_never_shown(tmp_path: Path, content: str | bytes, problem: str) -> None:
    file = written(tmp_path, content)
    with pytest.raises(InvalidSetting) as caught:
        Keys.read(file)
    message = str(caught.value)
    assert f"API_KEYS_FILE {problem}" in message
    assert message.endswith(f"got '{file}'")
    assert "wrong-place" not in message
    assert ALICE not in message


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"API_KEYS_FILE cannot be read \(No such file or directory\)"):
        Keys.read(tmp_path / "keys")


def test_line_is_added_behind_a_last_line_without_end(tmp_path: Path) -> None:
    file = written(tmp_path, f"alice:{ALICE}")
    append(file, f"bob:{BOB}")
    assert file.read_text() == f"alice:{ALICE}\nbob:{BOB}\n"


def make(*arguments: str, file: Path | None) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"]} | ({"API_KEYS_FILE": str(file)} if file else {})
    return subprocess.run(
        [sys.executable, "-m", "core.keys", *arguments],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_made_key_is_shown_once_and_kept_as_a_digest_in_a_file_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    first, second = make("alice", file=file), make("alice", file=file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    keys = Keys.read(file)
    for made in (first, second):
        assert made.returncode == 0
        key = made.stdout.strip()
        assert key.startswith("va_")
        assert len(key) == 46, "32 random bytes"
        assert keys.owner_of(key) == Owner("alice")
        assert key not in file.read_text() + made.stderr
    assert first.stdout != second.stdout


@pytest.mark.parametrize("rights", [(), ("watch",)])
def test_made_key_comes_with_its_line_when_there_is_no_file(rights: tuple[str, ...]) -> None:
    made = make("alice", *rights, file=None)
    assert made.returncode == 0
    assert "\n" + ":".join(["alice", digest_of(made.stdout.strip()), *rights]) + "\n" in made.stderr


@pytest.mark.parametrize("arguments", [(), ("",), ("a b",), ("alice", "bob"), ("a:b",)])
def test_bad_name_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    made = make(*arguments, file=tmp_path / "keys")
    assert made.returncode == 2
    assert "make key NAME=alice" in made.stderr
    assert not (tmp_path / "keys").exists()


def test_file_that_cannot_be_written_is_told_without_a_key(tmp_path: Path) -> None:
    made = make("alice", file=tmp_path / "missing" / "keys")
    assert (made.returncode, made.stdout) == (1, "")
    assert "No such file or directory" in made.stderr

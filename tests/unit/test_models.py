"""The list of models: what may stand in it, what a client may call them, and which of them a worker has."""

import os
import re
from pathlib import Path

import pytest

from core.config import Settings
from core.errors import InvalidSetting, ModelNotFound
from core.models import MOST_LISTED, Model, Models

DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"
TWO = f"""
[mini]
name = "{DEFAULT}"
token_encoding = "cl100k_base"

[large]
name = "BAAI/bge-large-en-v1.5"
revision = "d4aa690"
trust_remote_code = true
"""


def models_of(folder: Path, content: str, **settings: str) -> Models:
    file = folder / "models.toml"
    file.write_text(content, encoding="utf-8")
    return Models.of(Settings.from_env({"MODELS_FILE": str(file)} | settings))


@pytest.fixture
def two(tmp_path: Path) -> Models:
    return models_of(tmp_path, TWO)


def test_without_a_list_there_is_the_model_of_the_settings() -> None:
    models = Models.of(Settings.from_env({"MODEL_NAME": "org/one", "MODEL_REVISION": "main"}))
    assert models.all == (Model("org/one", revision="main", default=True),)
    assert models.queues == ("cpu", "gpu")
    assert models.find(None) == models.find("org/one") == models.default
    assert models.of_worker(["gpu", "cpu"]) == models.default


def test_list_adds_models_with_queues_of_their_own_and_says_more_about_the_default_one(two: Models) -> None:
    mini = Model(DEFAULT, "mini", token_encoding="cl100k_base", default=True)
    large = Model("BAAI/bge-large-en-v1.5", "large", revision="d4aa690", trust_remote_code=True)
    assert two.all == (mini, large)
    assert two.default == mini
    assert two.queues == ("cpu", "gpu", "cpu.large", "gpu.large")
    assert [two.of_queue(queue) for queue in ("cpu", "gpu.large", "cpu.mini", "tpu")] == [mini, large, None, None]


def test_default_model_needs_no_table(tmp_path: Path) -> None:
    models = models_of(tmp_path, '[large]\nname = "org/large"', MODEL_NAME="org/base", MODEL_REVISION="main")
    assert models.default == Model("org/base", revision="main", default=True)
    assert models.queues == ("cpu", "gpu", "cpu.large", "gpu.large")


def test_no_code_of_a_model_is_run_unless_the_list_says_so(tmp_path: Path, two: Models) -> None:
    assert [model.trust_remote_code for model in two.all] == [False, True]
    assert not Models.of(Settings()).default.trust_remote_code


@pytest.mark.parametrize(("revision", "listed", "found"), [("", "one", "one"), ("two", "", "two"), ("one", "one", "one")])
def test_revision_of_the_default_model_stands_in_either_place(tmp_path: Path, revision: str, listed: str, found: str) -> None:
    table = f'[mini]\nname = "{DEFAULT}"\n' + (f'revision = "{listed}"' if listed else "")
    assert models_of(tmp_path, table, MODEL_REVISION=revision).default.revision == found


def test_model_is_found_by_alias_and_by_full_name_and_nothing_else(two: Models) -> None:
    default, large = two.all
    assert two.find(None) == two.find("mini") == two.find(DEFAULT) == default
    assert two.find("large") == two.find("BAAI/bge-large-en-v1.5") == large
    for name in ("LARGE", "bge-large-en-v1.5", "", "/etc/passwd", "../large", "BAAI/bge-large-en-v1.5/"):
        with pytest.raises(ModelNotFound) as caught:
            two.find(name)
        assert caught.value.param == "model"
        assert f"known are mini ({DEFAULT}), large (BAAI/bge-large-en-v1.5)" in caught.value.message


def test_unknown_model_is_shown_only_if_it_looks_like_one(two: Models) -> None:
    with pytest.raises(ModelNotFound, match=r"^there is no model 'text-embedding-3-small' here; known are"):
        two.find("text-embedding-3-small")
    with pytest.raises(ModelNotFound, match=r"^there is no model of a name of 17 characters here"):
        two.find("a secret sentence")
    with pytest.raises(ModelNotFound, match=f"here; the model is {DEFAULT}$"):
        Models.of(Settings()).find("other")


def test_long_list_is_told_in_part(tmp_path: Path) -> None:
    content = "".join(f'[m{n}]\nname = "org/{n}"\n' for n in range(MOST_LISTED + 2))
    with pytest.raises(ModelNotFound, match=r", m8 \(org/8\) and 3 more$"):
        models_of(tmp_path, content).find("x")


@pytest.mark.parametrize(
    ("queues", "name"), [(["cpu"], DEFAULT), (["gpu", "cpu"], DEFAULT), (["cpu.large", "gpu.large"], "BAAI/bge-large-en-v1.5")]
)
def test_worker_has_the_model_of_its_queues(two: Models, queues: list[str], name: str) -> None:
    assert two.of_worker(queues).name == name


@pytest.mark.parametrize(
    ("queues", "problem"),
    [
        (["cpu", "cpu.large"], f"one model, but its queues belong to mini ({DEFAULT}), large (BAAI/bge-large-en-v1.5)"),
        (["cpu.mini"], "the queue 'cpu.mini' is unknown; known are cpu, gpu, cpu.large, gpu.large"),
        (["cpu", "tpu"], "the queue 'tpu' is unknown"),
        ([], "belong to none"),
    ],
)
def test_worker_of_unknown_queues_or_several_models_is_refused(two: Models, queues: list[str], problem: str) -> None:
    with pytest.raises(InvalidSetting, match=re.escape(problem)):
        two.of_worker(queues)


def test_unknown_queue_without_a_list_hints_at_it() -> None:
    with pytest.raises(InvalidSetting, match=r"'cpu.large' is unknown; known are cpu, gpu; MODELS_FILE would list"):
        Models.of(Settings()).of_worker(["cpu.large"])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "lists no model"),
        ("[large]\nname = =", "is not valid TOML: .*line 2"),
        ('name = "org/large"', "has name outside of a table"),
        ("[large]", r"has no name in \[large\]"),
        ('[large]\nname = ""', r"has a name in \[large\] that is not a string of 1 to 512 characters"),
        ("[large]\nname = 7", r"has a name in \[large\] that is not a string"),
        ('[large]\nname = "a"\nrevision = true', r"has a revision in \[large\] that is not a string"),
        ('[large]\nname = "a"\ntrust_remote_code = "yes"', r"has a trust_remote_code in \[large\] that is not true or false"),
        ('[large]\nname = "a"\ndtype = "int8"', r"has the unknown key dtype in \[large\]; known are name, revision"),
        ('[org.large]\nname = "a"', r"has the unknown key large in \[org\]"),
        ('["org/large"]\nname = "a"', r"has the table \[org/large\]; an alias has 1 to 32 letters"),
        ('["a:b"]\nname = "a"', r"has the table \[a:b\]; an alias has"),
        ('[one]\nname = "a"\n[two]\nname = "a"', r"gives \[two\] the same name as \[one\]"),
        ('[one]\nname = "two"\n[two]\nname = "a"', "has the alias two, which is the name of another model"),
        ('[base]\nname = "a"', "has the alias base, which is the name of another model"),
        ('[one]\nname = "base"\nrevision = "1"', r"has another revision in \[one\] than MODEL_REVISION=main"),
    ],
)
def test_bad_list_is_refused_with_its_place(tmp_path: Path, content: str, problem: str) -> None:
    with pytest.raises(InvalidSetting, match=rf"^MODELS_FILE {problem}.*, got '.*models\.toml'$") as caught:
        models_of(tmp_path, content, MODEL_NAME="base", MODEL_REVISION="main")
    assert caught.value.param == "MODELS_FILE"


def test_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=rf"^MODELS_FILE cannot be read \({os.strerror(2)}\), got '.*none'$"):
        Models.of(Settings(models_file=str(tmp_path / "none")))
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(InvalidSetting, match=r"^MODELS_FILE cannot be read \(not UTF-8\)"):
        Models.of(Settings(models_file=str(tmp_path / "binary")))

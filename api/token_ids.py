"""Token ids that clients send instead of texts, turned back into texts.

They come from the client's tokenizer, which is not the model's: LangChain counts with OpenAI's encodings and sends what it has
counted. Read by the model's own tokenizer they would be other words, so we have to be told which encoding they are of.
"""

import threading
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from core.errors import InvalidRequest, InvalidSetting
from core.models import Models

if TYPE_CHECKING:
    from tiktoken import Encoding

LOAD_SECONDS = 30.0
"""How long tiktoken may take for the download of an encoding, which has no time limit of its own."""


def load_all(models: Models) -> None:
    """Have the encodings of all models ready. Raises what `load` raises."""
    for model in models.all:
        if model.token_encoding:
            load(model.token_encoding)


def load(name: str, *, seconds: float = LOAD_SECONDS) -> None:
    """Have an encoding ready for `decode`: from tiktoken's cache, or by a download.

    Raises:
        InvalidSetting: there is no such encoding, or it could not be had in time.
    """
    problems: list[Exception] = []

    def try_to_load() -> None:
        try:
            _encoding(name)
        except Exception as error:  # whatever a download may raise
            problems.append(error)

    thread = threading.Thread(target=try_to_load, name="load-encoding", daemon=True)
    thread.start()
    thread.join(seconds)
    if problems:
        raise _unusable(name, problems[0]) from problems[0]
    if thread.is_alive():
        raise _unusable(name, TimeoutError(f"nothing came within {seconds:g} s"))


@cache
def _encoding(name: str) -> "Encoding":
    import tiktoken  # slow to import, and few need it

    if name not in (known := tiktoken.list_encoding_names()):
        raise LookupError(f"known are {', '.join(sorted(known))}")
    return tiktoken.get_encoding(name)


def _unusable(name: str, error: Exception) -> InvalidSetting:
    if isinstance(error, LookupError):
        return InvalidSetting(f"TOKEN_ENCODING, or a model's token_encoding, is unknown; {error.args[0]}, got {name!r}")
    reason = str(error).splitlines()[0] if str(error) else ""
    message = (
        f"the encoding of token ids {name} could not be loaded ({type(error).__name__}: {reason}). TOKEN_ENCODING, or a model's "
        "token_encoding, names it. It is downloaded when it is first used; where that is not possible, set TIKTOKEN_CACHE_DIR to "
        "a folder that tiktoken has filled on another machine"
    )
    return InvalidSetting(message)


def decode(encoding: str | None, ids: Sequence[int], param: str) -> str:
    """The text that token ids stand for. Bytes that are no UTF-8, of a character that was cut in two, become U+FFFD.

    Args:
        encoding: the name of one that `load` has loaded; None when ids are not taken.
        param: the field that holds them, for the message.

    Raises:
        InvalidRequest: they cannot be turned into text.
    """
    if encoding is None:
        message = (
            f"{param} holds token ids, and this API is not told of which encoding they are (TOKEN_ENCODING): send texts. In "
            "LangChain, OpenAIEmbeddings(check_embedding_ctx_length=False) does"
        )
        raise InvalidRequest(message, param=param, code="token_ids_not_supported")
    try:
        return _encoding(encoding).decode(ids)
    except (KeyError, OverflowError):
        raise InvalidRequest(f"{param} holds a number that is no token id of the encoding {encoding}", param=param) from None

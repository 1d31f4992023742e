"""An encoding for tests, found by tiktoken where this folder's parent is on the path: a token is a byte of UTF-8."""

ENCODING_CONSTRUCTORS = {
    "utf8_bytes": lambda: {
        "name": "utf8_bytes",
        "pat_str": r"[\s\S]",
        "mergeable_ranks": {bytes([n]): n for n in range(256)},
        "special_tokens": {"<|end|>": 256},
    }
}

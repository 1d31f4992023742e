"""API keys: who a key belongs to, and `python -m core.keys NAME`, which makes one.

The file holds a line `tenant:sha256` for each key, never the key itself; `tenant:sha256:watch` for one that may only look at
figures. A tenant may have several. Blank lines and lines that begin with `#` say nothing. A plain SHA-256 is enough, as a key is
32 random bytes and not a word that could be guessed.
"""

import hashlib
import hmac
import os
import re
import secrets
import sys
from pathlib import Path
from typing import NamedTuple, Self

from core.config import Settings
from core.errors import InvalidSetting

PREFIX = "va_"
"""Start of every key, by which people and scanners for secrets know one."""

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
LINE = re.compile(rf"({NAME.pattern}):([0-9a-fA-F]{{64}})(:watch)?")
NAME_RULE = "1 to 64 letters, digits, dots, dashes or underscores"


def digest_of(key: str) -> str:
    """What the file holds of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class Owner(NamedTuple):
    """Whose a key is."""

    tenant: str
    watches: bool = False
    """It may only look at figures."""


class Keys:
    """The keys of a file."""

    def __init__(self, owners: dict[str, Owner]) -> None:
        """`owners` by the digest of their key."""
        self._owners = tuple(owners.items())

    @classmethod
    def read(cls, file: Path) -> Self:
        """The keys in a file.

        Raises:
            InvalidSetting: it cannot be read, or a line is none of the two. The message shows no line: it may be a key.
        """
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "not UTF-8"
            raise _bad_file(f"cannot be read ({reason})", file) from None
        owners: dict[str, Owner] = {}
        for number, line in enumerate(map(str.strip, lines), start=1):
            if not line or line.startswith("#"):
                continue
            found = LINE.fullmatch(line)
            if found is None:
                raise _bad_file(
                    f"has a line {number} that is not tenant:sha256 or tenant:sha256:watch (a tenant has {NAME_RULE})", file
                )
            owner, digest = Owner(found[1], watches=bool(found[3])), found[2].lower()
            if owners.setdefault(digest, owner) != owner:
                raise _bad_file(f"gives the key of line {number} to another tenant, or other rights, as well", file)
        return cls(owners)

    def __len__(self) -> int:
        return len(self._owners)

    def owner_of(self, key: str) -> Owner | None:
        """Whose key it is, or None. Takes as long for a wrong key as for a right one."""
        digest, found = digest_of(key), None
        for known, owner in self._owners:
            if hmac.compare_digest(known, digest):
                found = owner
        return found


def _bad_file(problem: str, file: Path) -> InvalidSetting:
    return InvalidSetting(f"API_KEYS_FILE {problem}, got {str(file)!r}", param="API_KEYS_FILE")


def append(file: Path, line: str) -> None:
    """Add a line to the file; one that is made here is for its owner alone."""
    with open(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b") as out:
        content = out.read()
        out.write(b"\n" * (not content.endswith(b"\n") and bool(content)) + line.encode() + b"\n")


def main(arguments: list[str]) -> int:
    """Make a key for a tenant: print it, and add its line to API_KEYS_FILE. Returns the exit code."""
    name, *rights = arguments or [""]
    if not NAME.fullmatch(name) or rights not in ([], ["watch"]):
        usage = "make key NAME=alice [MAY=watch] (or python -m core.keys alice [watch])"
        print(f"usage: {usage}; a name has {NAME_RULE}; watch is a key for figures alone", file=sys.stderr)
        return 2
    key = PREFIX + secrets.token_urlsafe(32)
    line = ":".join([name, digest_of(key), *rights])
    try:
        path = Settings.from_env().api_keys_file
        if path is None:
            told = f"Put this line into the file that API_KEYS_FILE names:\n{line}"
        else:
            append(Path(path), line)
            told = f"Its line was added to {path}."
    except (InvalidSetting, OSError) as error:
        print(f"vector-api: {error}", file=sys.stderr)
        return 1
    print(key)
    print(f"This is the key of {name}. It is shown this once and kept nowhere. {told}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

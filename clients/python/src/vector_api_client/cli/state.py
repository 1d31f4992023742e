"""What a run of `vector-api embed` leaves for the next one, in a small file: the job, and how far it is written."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson

from vector_api_client.cli.readers import BadFile

VERSION = 1


@dataclass
class State:
    """A run that is not over."""

    url: str
    inputs_digest: str
    """SHA-256 of what is sent: the same file, read in the same way, has the same."""
    idempotency_key: str
    """Kept before anything is sent, so that no interruption makes a second job."""
    options: dict[str, Any] = field(default_factory=dict)
    job: str | None = None
    rows: int = 0
    """Rows in the part file."""
    sent: int = 0
    """Inputs of the job that these rows are from. The others are lines that were not sent."""
    part_bytes: int = 0
    error_bytes: int = 0
    dimensions: int | None = None
    failed: int = 0
    cancelled: int = 0
    """Rows of inputs that the job was cancelled before."""
    truncated: int = 0
    version: int = VERSION

    def forget_rows(self) -> None:
        """Nothing is written: read the job from its start."""
        self.rows = self.sent = self.part_bytes = self.error_bytes = self.failed = 0
        self.cancelled = self.truncated = 0
        self.dimensions = None

    @classmethod
    def load(cls, file: Path) -> Self | None:
        """What the file holds; None when there is none.

        Raises:
            BadFile: it cannot be read, or another version of this command wrote it.
        """
        try:
            values = orjson.loads(file.read_bytes())
            if values["version"] != VERSION:
                raise ValueError
            return cls(**values)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            raise BadFile(f"{file} is not what this command left of an earlier run; --overwrite starts anew") from None

    def save(self, file: Path) -> None:
        new = file.with_name(file.name + ".new")
        with new.open("wb") as out:
            out.write(orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
            out.flush()
            os.fsync(out.fileno())
        os.replace(new, file)

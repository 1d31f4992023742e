"""What the user asked `vector-api embed` for, and the files that belong to it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vector_api_client.cli.readers import STANDARD_INPUT, Columns


@dataclass(frozen=True)
class Order:
    """What the user asked for. `options` are those of POST /v1/jobs."""

    file: str
    output: Path
    file_format: str | None
    columns: Columns
    options: dict[str, Any]
    wait: bool
    skip_bad: bool
    overwrite: bool

    @property
    def name(self) -> str:
        """The file in a message."""
        return "the standard input" if self.file == STANDARD_INPUT else self.file

    @property
    def unit(self) -> str:
        return "row" if self.file.lower().endswith(".parquet") or self.file_format == "parquet" else "line"

    def beside(self, ending: str) -> Path:
        return self.output.with_name(self.output.name + ending)

    @property
    def state_file(self) -> Path:
        return self.beside(".state.json")

    @property
    def part_file(self) -> Path:
        return self.beside(".part")

    @property
    def errors_file(self) -> Path:
        return self.beside(".errors.jsonl")

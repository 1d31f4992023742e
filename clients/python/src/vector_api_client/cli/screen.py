"""What the user sees of the work: lines and a bar on the standard error; without a terminal a line now and then."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LINE_SECONDS = 10.0
SPEED_SECONDS = 60.0
"""The speed that is shown is that of the last so many seconds: vectors come in bursts, a shard at a time."""


class TextsColumn(ProgressColumn):
    """`12,000/50,000  850/s`"""

    def render(self, task: Task) -> Text:
        speed = f"  {task.speed:,.0f}/s" if task.speed else ""
        total = f"/{int(task.total):,}" if task.total is not None else ""
        return Text(f"{int(task.completed):,}{total}{speed}")


class Stage:
    """One step of the work, with a bar."""

    def __init__(self, console: Console, progress: Progress | None, title: str, total: int | None, done: int) -> None:
        self._console = console
        self._progress = progress
        self._title = title
        self._total = total
        self.done = done
        self._said = time.monotonic()
        self._task = progress.add_task(title, total=total, completed=done) if progress else None

    def advance(self, count: int) -> None:
        self.set(self.done + count)

    def set(self, done: int) -> None:
        self.done = done
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done)
        elif time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            total = f" of {self._total:,}" if self._total is not None else ""
            self._console.print(f"{self._title}: {done:,}{total}")


class Screen:
    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self.console.print(text)

    def warn(self, text: str) -> None:
        self.console.print(text, style="yellow")

    def fail(self, text: str) -> None:
        self.console.print(f"vector-api: {text}", style="red")

    @contextmanager
    def stage(self, title: str, total: int | None, *, done: int = 0, unit: str = "texts") -> Iterator[Stage]:
        """A bar while the block runs. `unit` is `texts` or `bytes`."""
        if not self.console.is_terminal:
            yield Stage(self.console, None, title, total, done)
            return
        counted = DownloadColumn() if unit == "bytes" else TextsColumn()
        shown = [TextColumn("{task.description:9}"), BarColumn(bar_width=30), TaskProgressColumn(), counted]
        with Progress(
            *shown, TimeRemainingColumn(), console=self.console, transient=True, speed_estimate_period=SPEED_SECONDS
        ) as progress:
            yield Stage(self.console, progress, title, total, done)

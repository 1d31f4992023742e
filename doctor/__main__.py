"""Print one line per finding, and what to do. Exit code 0: nothing stands in the way, 1: something does."""

import os
import sys

from core.config import Settings
from core.errors import InvalidSetting
from doctor.checks import Finding, Level, check_all, failure, worst
from doctor.probes import probe_driver, probe_keys, probe_libraries, probe_machine, probe_models, probe_redis, probe_store

COLOURS = {Level.OK: "\x1b[32m", Level.WARNING: "\x1b[33m", Level.FAILURE: "\x1b[31m"}
LEVEL_WIDTH, SUBJECT_WIDTH = 9, 12


def main() -> int:
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without UTF-8 is no reason to fail
    try:
        settings = Settings.from_env()
    except InvalidSetting as error:
        findings = [failure("settings", error.message, "correct this variable; the README lists what is allowed")]
    else:
        server = probe_redis(settings, named=bool(os.environ.get("REDIS_URL", "").strip()))
        findings = check_all(
            settings,
            probe_libraries(),
            probe_driver(),
            server,
            probe_machine(),
            keys=probe_keys(settings),
            store=probe_store(settings),
            models=probe_models(settings),
        )
    for finding in findings:
        print(line(finding, colours=sys.stdout.isatty()))
    return 1 if worst(findings) is Level.FAILURE else 0


def line(finding: Finding, *, colours: bool = False) -> str:
    """The finding as text, with its advice on a line of its own."""
    level = f"{finding.level.value:{LEVEL_WIDTH}}"
    if colours:
        level = f"{COLOURS[finding.level]}{level}\x1b[0m"
    shown = f"{level}{finding.subject:{SUBJECT_WIDTH}}{finding.message}"
    return f"{shown}\n{'':{LEVEL_WIDTH + SUBJECT_WIDTH}}to do: {finding.advice}" if finding.advice else shown


if __name__ == "__main__":
    sys.exit(main())

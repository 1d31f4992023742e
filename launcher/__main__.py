"""`python -m launcher run` and `python -m launcher demo`."""

import argparse
import os
import sys
from pathlib import Path

from core.config import Settings
from core.errors import VectorApiError
from core.models import Models
from core.routing import QUEUES
from launcher.run import run
from launcher.stack import ROOT


def main() -> int:
    options = _parser().parse_args()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without UTF-8 is no reason to fail
    try:
        settings = Settings.from_env()
        Models.of(settings)  # a list that cannot be used is told before anything is started
        if options.command == "demo":
            from launcher.demo import demo  # needs httpx, numpy and tqdm, which `run` does without

            return demo(settings, os.environ, options.file, queues=options.queues)
        return run(settings, os.environ, options.data, queues=options.queues)
    except VectorApiError as error:
        print(f"vector-api: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launcher", description="vector-api on one machine: Redis, the API and a worker."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run_parser = commands.add_parser("run", help="start everything, and stop it on Ctrl-C")
    data = Path(os.environ.get("DATA_DIR", "").strip() or ROOT / ".data")
    run_parser.add_argument("--data", type=Path, default=data, help="where Redis keeps its data (DATA_DIR, else .data)")
    demo_parser = commands.add_parser("demo", help="start everything, embed a text, search in it, and stop")
    demo_parser.add_argument("file", type=Path, nargs="?", default=ROOT / "examples" / "alice.txt", help="the text (%(default)s)")
    for each in (run_parser, demo_parser):
        each.add_argument(
            "--queues", type=_queues, default="cpu", help="what the worker works for: cpu, gpu or gpu,cpu (%(default)s)"
        )
    return parser


def _queues(value: str) -> str:
    if not set(value.split(",")) <= set(QUEUES):
        raise argparse.ArgumentTypeError(f"must be of {', '.join(QUEUES)}, divided by commas; got {value!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())

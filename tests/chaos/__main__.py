"""The long run: kills, then what became of every job."""

import argparse
import tempfile
from pathlib import Path

from tests.chaos.models import Fake, Real
from tests.chaos.run import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=1.5, help="seconds between two kills, on average (%(default)s)")
    parser.add_argument("--real-model", action="store_true", help="the default model instead of the fake engine")
    options = parser.parse_args()
    model = Real() if options.real_model else Fake()
    with tempfile.TemporaryDirectory() as folder, Run(Path(folder), seed=options.seed, model=model) as run:
        run.kill_at_random(options.kills, options.pause)
        verdict = run.verdict()
    print(verdict)
    raise SystemExit(not verdict.good)


if __name__ == "__main__":
    main()

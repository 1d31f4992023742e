"""The long run, from a new seed each time."""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from launcher.redis_server import RedisServer
from tests.fuzz.run import SMALL, fuzz
from tests.processes import running_stack


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with RedisServer(folder / "redis", {"appendfsync": "no"}) as server:
            for stack in running_stack(server.url, folder, SMALL):
                stack.api()
                print(f"seed {options.seed}, {options.seconds} s", flush=True)
                ended = fuzz(stack, f"--seed={options.seed}", f"--max-time={options.seconds}", "--generation-database=none")
    print(ended.stdout)
    return ended.returncode


if __name__ == "__main__":
    sys.exit(main())

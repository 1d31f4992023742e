"""How long a worker takes from nothing to its first vector, and what of it is importing, loading, converting and measuring.

    python -m bench.cold_start [--repeats 3] [--output bench/results/cold_start.json]

Each figure is the median over fresh processes, in which the cases take turns. The files lie in the system's cache already, as
after a restart and not after a boot. The hub is not asked (`HF_HUB_OFFLINE`), so no network is part of any figure; the model is
that of `MODEL_NAME`. OpenVINO converts into an empty folder (`no cache`), then starts from what lies there (`cache`).
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TEXT = "The quick brown fox jumps over the lazy dog."
CHILD = "--child"
TIMEOUT_SECONDS = 600

IMPORTS = {
    "python alone": "pass",
    "import worker (the parent)": "import worker",
    "import torch": "import torch",
    "import torch, sentence_transformers": "import torch, sentence_transformers",
    "import openvino": "import openvino",
}
PHASES = ("import worker", "import engines", "load model", "convert", "compile", "parity", "engine in all", "first vector")
"""What a child times, in this order. The engine in all is the call that loads, converts, compiles and measures, and small things
beside; loading includes that of the float32 model in torch with which parity compares."""


def child() -> None:
    """Start as a worker's child does and print the seconds of each phase as JSON."""
    seconds = dict.fromkeys(PHASES, 0.0)
    open_phases: list[str] = []

    def timed(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if phase in open_phases:
                return function(*args, **kwargs)
            open_phases.append(phase)
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[phase] += time.perf_counter() - started
                open_phases.remove(phase)

        return call

    def import_worker() -> Any:
        from worker import settings

        return settings

    def import_engines() -> Any:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the worker does
        from worker.engines import loading

        return loading

    settings = timed("import worker", import_worker)()
    loading = timed("import engines", import_engines)()
    from worker.engines.model import Model

    Model.load = timed("load model", Model.load)  # type: ignore[method-assign]
    loading.parity = timed("parity", loading.parity)
    if settings.engine == "openvino":
        try:
            import openvino

            openvino.convert_model = timed("convert", openvino.convert_model)
            openvino.Core.compile_model = timed("compile", openvino.Core.compile_model)
        except ImportError:
            pass  # the engine says so below, in words
    from core.errors import EngineError

    try:
        engine = timed("engine in all", loading.load_engine)(settings)
    except EngineError as error:
        print(json.dumps({"error": error.message}))
        return
    timed("first vector", lambda: engine.embed(engine.tokenize([TEXT], None)))()
    started = time.perf_counter()
    engine.embed(engine.tokenize([TEXT], None))
    facts = {"engine": engine.facts.engine, "dtype": engine.facts.dtype, "model": engine.facts.model}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    second = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "second vector": second, "peak_bytes": peak, "facts": facts}))


def run(arguments: list[str], **environ: str) -> tuple[float, str]:
    """Seconds that a fresh interpreter took from its start to its end, and what it printed.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "DEVICE": "cpu"} | environ
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_SECONDS,
    )
    return time.perf_counter() - started, done.stdout


def imports(repeats: int) -> dict[str, float | str]:
    """Median seconds of each import, the interpreter's own start included; an error's last line where it fails."""
    found: dict[str, list[float]] = {name: [] for name in IMPORTS}
    errors: dict[str, str] = {}
    for turn in range(repeats + 1):  # the first turn fills the system's cache and compiles
        for name, code in IMPORTS.items():
            try:
                seconds, _ = run(["-c", code])
            except subprocess.CalledProcessError as error:
                errors[name] = (error.stderr.strip().splitlines() or ["failed"])[-1]
                continue
            if turn:
                found[name].append(seconds)
    return {name: errors.get(name) or statistics.median(found[name]) for name in IMPORTS}


def starts(repeats: int) -> list[dict[str, Any]]:
    """One row for each engine, parity and cache: median seconds of each phase, or why there is none."""
    cases = [
        (engine, parity, cache)
        for engine, caches in (("torch", ("",)), ("openvino", ("no cache", "cache")))
        for parity in ("off", "on")
        for cache in caches
    ]
    measured: dict[tuple[str, str, str], list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="vector-api-bench-") as name:
            for case in cases:
                engine, parity, _cache = case
                switches = {"ENGINE": engine, "PARITY": str(int(parity == "on")), "CACHE_DIR": f"{name}/{parity}"}
                seconds, printed = run(["-m", "bench.cold_start", CHILD], **switches)
                found = json.loads(printed.splitlines()[-1])
                measured[case].append(found | {"process": seconds})
    rows = []
    for (engine, parity, cache), runs in measured.items():
        row: dict[str, Any] = {"engine": engine, "cache": cache, "parity": parity}
        failed = next((found["error"] for found in runs if "error" in found), None)
        if failed:
            rows.append(row | {"error": failed})
            continue
        phases = {phase: statistics.median(found["seconds"][phase] for found in runs) for phase in PHASES}
        to_vector = statistics.median(
            sum(found["seconds"][phase] for phase in ("import worker", "import engines", "engine in all", "first vector"))
            for found in runs
        )
        rows.append(
            row
            | {
                "dtype": runs[0]["facts"]["dtype"],
                "model": runs[0]["facts"]["model"],
                "seconds": phases,
                "to_first_vector_seconds": to_vector,
                "second_vector_seconds": statistics.median(found["second vector"] for found in runs),
                "process_seconds": statistics.median(found["process"] for found in runs),
                "peak_bytes": max(found["peak_bytes"] for found in runs),
                "runs": runs,
            }
        )
    return rows


def show_imports(found: dict[str, float | str]) -> None:
    alone = found["python alone"]
    print("Import in a fresh process, seconds\n")
    print(f"| {'':36} | {'process':>8} | {'import':>8} |\n| {'-' * 36} | {'-' * 8} | {'-' * 8} |")
    for name, seconds in found.items():
        if isinstance(seconds, str) or isinstance(alone, str):
            print(f"| {name:36} | {seconds}")
        else:
            print(f"| {name:36} | {seconds:8.2f} | {seconds - alone:8.2f} |")
    print()


def show_starts(rows: list[dict[str, Any]]) -> None:
    heads = ["engine", "parity", *PHASES, "to first vector", "second, ms", "peak MB"]
    lines = []
    for row in rows:
        name = " ".join(filter(None, (row["engine"], row.get("dtype", ""), row["cache"])))
        if "error" in row:
            lines.append([name, row["parity"], f"not available: {row['error']}"])
            continue
        phases = [f"{row['seconds'][phase]:.2f}" if row["seconds"][phase] else "-" for phase in PHASES]
        last = [f"{row['to_first_vector_seconds']:.2f}", f"{row['second_vector_seconds'] * 1000:.1f}"]
        lines.append([name, row["parity"], *phases, *last, f"{row['peak_bytes'] / 1e6:.0f}"])
    whole = [line for line in lines if len(line) == len(heads)]
    widths = [max(len(head), *(len(line[place]) for line in whole), 0) for place, head in enumerate(heads)]
    print("Start of a worker's child, seconds\n")
    for line in (heads, ["-" * width for width in widths], *lines):
        print("| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=False)) + " |")
    print()


def main() -> int:
    if sys.argv[1:] == [CHILD]:
        child()
        return 0
    parser = argparse.ArgumentParser(
        prog="python -m bench.cold_start", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes for each figure (%(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "cold_start.json")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    from bench.setting import machine, save  # the children do without it

    facts = machine()
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    print(f"{facts['cpu']}, {facts['cpus']} CPUs, Python {platform.python_version()}, {versions}, {facts['date']}\n", flush=True)
    try:
        imported = imports(options.repeats)
        show_imports(imported)
        started = starts(options.repeats)
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(error.cmd)} failed:\n{error.stderr}", file=sys.stderr)
        return 1
    show_starts(started)
    found = {"machine": facts, "repeats": options.repeats, "imports_seconds": imported, "starts": started}
    save("cold_start", found, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

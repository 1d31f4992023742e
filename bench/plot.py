"""Pictures of the results: `python -m bench.plot` draws each JSON file in `bench/results` as an SVG file beside it.

The same figures give the same bytes. The background is white, so that a picture is readable on a dark page as well.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

RESULTS = Path(__file__).parent / "results"
STYLE = {
    "svg.hashsalt": "vector-api",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9.5,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "#8b949e",
    "axes.labelcolor": "#424a53",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": "#1f2328",
    "xtick.color": "#424a53",
    "ytick.color": "#424a53",
    "grid.color": "#d8dee4",
    "legend.frameon": False,
}
OURS, ENGINE, OTHERS = "#0969da", "#54aeff", ("#afb8c1", "#818b98", "#59636e")
WARM, GREEN, PURPLE = "#bc4c00", "#1a7f37", "#8250df"
PHASES = {
    "import worker": "#d0d7de",
    "import engines": "#afb8c1",
    "load model": "#54aeff",
    "convert": "#0969da",
    "compile": "#033d8b",
    "parity": "#8250df",
    "first vector": "#1a7f37",
}
ROW_INCHES = 0.34


def machine_line(result: Mapping[str, Any]) -> str:
    """Where and when the figures were taken."""
    facts = result["machine"]
    versions = [f"{name} {facts['versions'][name]}" for name in ("torch", "openvino") if name in facts["versions"]]
    gpu = [result["gpu"]["name"]] if result.get("gpu") else []
    return " · ".join([*gpu, f"{facts['cpu']}, {facts['cpus']} CPUs", *versions, facts["date"][:10]])


def figure(columns: int, height: float, title: str, result: Mapping[str, Any], *, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with its title and the machine in one line below it; `height` in inches."""
    made, axes = plt.subplots(rows, columns, figsize=(9.2, height + 0.75), squeeze=False)
    top = 1 - 0.62 / (height + 0.75)
    made.suptitle(title, x=0.012, y=1 - 0.1 / (height + 0.75), ha="left", va="top", fontsize=12.5, fontweight="bold")
    made.text(0.012, 1 - 0.36 / (height + 0.75), machine_line(result), ha="left", va="top", fontsize=8.5, color="#59636e")
    made.set_layout_engine("constrained", rect=(0.006, 0.01, 0.988, top - 0.02))
    return made, list(axes.flat)


def bars(axis: Axes, values: Mapping[str, float], colours: Sequence[str], notes: Mapping[str, str], *, names: bool) -> None:
    """Horizontal bars, the first on top, each with its value and a note behind its end."""
    places = range(len(values))
    axis.barh(places, list(values.values()), color=colours, height=0.68)
    largest = max(values.values())
    for place, (name, value) in zip(places, values.items(), strict=True):
        text = f"{number(value)}  {notes.get(name, '')}".rstrip()
        axis.text(value + 0.015 * largest, place, text, va="center", ha="left", fontsize=9)
    axis.set_yticks(places, list(values) if names else [""] * len(values))
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.set_xlim(0, largest * 1.42)
    axis.set_xticks([])
    axis.spines[["bottom"]].set_visible(False)


def number(value: float) -> str:
    """At most three digits and thousands with commas."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def by_clients(axis: Axes, lines: Mapping[str, Mapping[int, float]], looks: Mapping[str, Mapping[str, Any]], what: str) -> None:
    """Lines over the number of clients, both axes logarithmic."""
    for name, points in lines.items():
        axis.plot(list(points), list(points.values()), label=name, marker="o", markersize=4, linewidth=1.8, **looks[name])
    clients = sorted({count for points in lines.values() for count in points})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(clients, [str(count) for count in clients])
    axis.xaxis.set_minor_locator(NullLocator())
    values = [value for points in lines.values() for value in points.values()]
    axis.set_yticks(_steps(min(values), max(values)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axis.set_xlabel("clients")
    axis.set_title(what)
    axis.grid(axis="y", linewidth=0.7)


def _steps(least: float, most: float) -> list[float]:
    """1, 2, 5, 10, … around the values."""
    steps = [digit * 10.0**power for power in range(-6, 13) for digit in (1, 2, 5)]
    first = max(index for index, step in enumerate(steps) if step <= least)
    last = min(index for index, step in enumerate(steps) if step >= most)
    return steps[first : last + 1]


def throughput(result: Mapping[str, Any]) -> Figure:
    corpora = result["corpora"]
    made, axes = figure(len(corpora), 3 * ROW_INCHES + 0.4, "Texts per second on a CPU", result)
    names = {"encode": "encode", "engine": "engine in process", "service": "service, end to end"}
    for index, (axis, (corpus, found)) in enumerate(zip(axes, corpora.items(), strict=True)):
        values = {names[who]: rate for who, rate in found["texts_per_second"].items()}
        ratios = {names[who]: f"×{found['ratios'][f'{who}/encode']:.2f}" for who in ("engine", "service")}
        bars(axis, values, (OTHERS[0], ENGINE, OURS), ratios, names=index == 0)
        axis.set_title(f"{corpus}: {found['tokens_per_text']:.0f} tokens a text")
    return made


def small_jobs(result: Mapping[str, Any]) -> Figure:
    made, (rate, latency) = figure(2, 2.7, "Jobs of one text", result)
    looks = {"idle worker": {"color": OURS}, "beside bulk work": {"color": WARM}}
    named = {"idle": "idle worker", "bulk": "beside bulk work"}

    def line(beside: str, key: str) -> dict[int, float]:
        return {row["clients"]: row[key] for row in result["rows"] if row["beside"] == beside}

    by_clients(rate, {name: line(beside, "jobs_per_second") for beside, name in named.items()}, looks, "jobs per second")
    rate.legend(loc="lower right")
    for beside, name in named.items():
        for key, style in (("p50_ms", "-"), ("p99_ms", "--")):
            label = f"{name}, {key[:3]}"
            by_clients(latency, {label: line(beside, key)}, {label: looks[name] | {"linestyle": style}}, "latency, milliseconds")
    every = [row[key] for row in result["rows"] for key in ("p50_ms", "p99_ms")]
    latency.set_yticks(_steps(min(every), max(every)))
    latency.legend(loc="upper left", fontsize=8.5)
    return made


def peers(result: Mapping[str, Any]) -> Figure:
    names = list(result["servers"])
    colours = dict(zip(names, (OURS, WARM, GREEN), strict=False))
    corpora = result["bulk"]
    made = plt.figure(figsize=(9.2, len(names) * ROW_INCHES + 4.2))
    height = len(names) * ROW_INCHES + 4.2
    made.suptitle("Beside infinity", x=0.012, y=1 - 0.1 / height, ha="left", va="top", fontsize=12.5, fontweight="bold")
    line = f"{machine_line(result)} · infinity {result['infinity']['infinity-emb']}"
    made.text(0.012, 1 - 0.36 / height, line, ha="left", va="top", fontsize=8.5, color="#59636e")
    made.set_layout_engine("constrained", rect=(0.006, 0.01, 0.988, 1 - 0.64 / height - 0.02))
    above, below = made.subfigures(2, 1, height_ratios=(len(names) * ROW_INCHES + 0.55, 3.0))
    for index, (corpus, found) in enumerate(corpora.items()):
        axis = above.add_subplot(1, len(corpora), index + 1)
        ratios = {name: f"ours ×{ratio:.2f}" for name, ratio in found["ratios"].items()}
        bars(axis, found["texts_per_second"], [colours[name] for name in names], ratios, names=index == 0)
        axis.set_title(f"{corpus}, texts per second")
    if result["single"]:
        rate, latency = below.add_subplot(1, 2, 1), below.add_subplot(1, 2, 2)

        def lines(key: str) -> dict[str, dict[int, float]]:
            return {name: {row["clients"]: row[name][key] for row in result["single"]} for name in names}

        looks = {name: {"color": colours[name]} for name in names}
        by_clients(rate, lines("requests_per_second"), looks, "one text each: requests per second")
        by_clients(latency, lines("p50_ms"), looks, "one text each: median latency, milliseconds")
        rate.legend(loc="lower right", fontsize=8.5)
    return made


def ledger(result: Mapping[str, Any]) -> Figure:
    made, (jobs, inputs) = figure(2, 4 * ROW_INCHES + 0.4, "The ledger alone", result)
    submitted, drained, p50 = {}, {}, {}
    for row in result["rows"]:
        for found in row["submitted"]:
            clients = f"{found['clients']} client{'s' if found['clients'] > 1 else ''}"
            name = f"{clients}, fsync {row['appendfsync']}"
            submitted[name], p50[name] = found["jobs_per_second"], f"p50 {found['p50_ms']:.1f} ms"
        for shards, rate in row["drained_inputs_per_second"].items():
            drained[f"{shards}, fsync {row['appendfsync']}"] = rate
    bars(jobs, submitted, (OURS, OURS, ENGINE, ENGINE), p50, names=True)
    jobs.set_title("jobs submitted per second")
    bars(inputs, drained, (OURS, OURS, ENGINE, ENGINE), {}, names=True)
    inputs.set_title("inputs drained per second")
    return made


def cold_start(result: Mapping[str, Any]) -> Figure:
    rows = [row for row in result["starts"] if "error" not in row]
    made, (axis,) = figure(1, len(rows) * ROW_INCHES + 0.9, "From nothing to the first vector", result)
    labels, ends = [], [0.0] * len(rows)
    for row in rows:
        cache = f", {row['cache']}" if row["cache"] else ""
        labels.append(f"{row['engine']} {row['dtype']}{cache}, parity {row['parity']}")
    for phase, colour in PHASES.items():
        lengths = [row["seconds"][phase] for row in rows]
        axis.barh(range(len(rows)), lengths, left=ends, color=colour, height=0.68, label=phase)
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    for place, (row, end) in enumerate(zip(rows, ends, strict=True)):
        total = row["to_first_vector_seconds"]
        axis.text(max(end, total) + 0.01 * max(ends), place, f"{total:.1f} s", va="center")
    axis.set_yticks(range(len(rows)), labels)
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.set_xlim(0, max(ends) * 1.08)
    axis.set_xlabel("seconds")
    made.legend(loc="outside lower right", ncols=len(PHASES), fontsize=8.5, handlelength=1, columnspacing=1.2)
    return made


def memory(result: Mapping[str, Any]) -> Figure:
    made, (worker, others) = figure(2, 2.5, f"Memory over {result['texts']:,} texts", result)
    samples = result["samples"]
    seconds = [sample["seconds"] for sample in samples]
    looks = {"worker": OURS, "api": WARM, "api parent": "#e8a27c", "worker parent": OTHERS[0], "redis": GREEN}
    for name, row in result["processes"].items():
        axis = worker if name == "worker" else others
        label = f"{name}: {row['growth_after_10_percent'] / 1e6:+.1f} MB after 10 %"
        axis.plot(seconds, [sample[name] / 1e6 for sample in samples], color=looks.get(name, PURPLE), label=label, linewidth=1.6)
    others.axhline(result["api_limit_bytes"] / 1e6, color=WARM, linewidth=0.9, linestyle=":")
    highest = {worker: 0.0, others: result["api_limit_bytes"] / 1e6}
    for name, row in result["processes"].items():
        axis = worker if name == "worker" else others
        highest[axis] = max(highest[axis], row["peak"] / 1e6)
    tenth = next((sample["seconds"] for sample in samples if sample["done"] >= result["texts"] / 10), None)
    for axis, title in ((worker, "worker, MB"), (others, "the others, MB; dotted: the API's limit")):
        axis.set_ylim(0, highest[axis] * 2)
        axis.set_title(title)
        axis.set_xlabel("seconds")
        axis.grid(axis="y", linewidth=0.7)
        axis.legend(loc="upper left", fontsize=8.5)
        if tenth is not None:
            axis.axvline(tenth, color="#d0d7de", linewidth=1, zorder=0)
    return made


def redis_memory(result: Mapping[str, Any]) -> Figure:
    rows = result["rows"]
    made, (waiting, done) = figure(2, len(rows) * ROW_INCHES + 0.4, "Bytes in Redis for each text", result)
    names = []
    for row in rows:
        jobs = "jobs of one" if row["job_inputs"] == 1 else f"shards of {row['shard_inputs']}"
        names.append(f"{row['tokens']} tokens, {row['dimensions']} numbers, {jobs}, {row['RESULT_STORE']}")
    for axis, key, title in ((waiting, "waiting_bytes", "waiting"), (done, "done_bytes", "done")):
        values = {name: row[key] for name, row in zip(names, rows, strict=True)}
        bars(axis, values, (OURS,) * len(rows), {}, names=axis is waiting)
        axis.set_title(title)
    return made


def downloads(result: Mapping[str, Any]) -> Figure:
    rows = result["rows"]
    title = f"Reading {result['inputs']:,} vectors of {result['dimensions']} numbers"
    made, (speed, memory) = figure(2, len(rows) * ROW_INCHES + 0.4, title, result)
    sizes = {row["format"]: f"of {number(row['megabytes'])}" for row in rows}
    bars(speed, {row["format"]: row["megabytes_per_second"] for row in rows}, (OURS,) * len(rows), sizes, names=True)
    speed.set_title("MB per second")
    bars(memory, {row["format"]: row["api_peak_megabytes"] for row in rows}, (PURPLE,) * len(rows), {}, names=False)
    memory.set_title("API: most MB of memory")
    return made


def scale_out(result: Mapping[str, Any]) -> Figure:
    work = result["work"]
    made, axes = figure(len(work), 2.2, "Inputs per second with 1 to 4 workers, each on a host of its own", result)
    titles = {"clock": "each worker has a device of its own", "cpu": "all workers share this machine's CPUs"}
    for axis, (name, rows) in zip(axes, work.items(), strict=True):
        workers = [row["workers"] for row in rows]
        first = rows[0]["inputs_per_second"]
        axis.plot(workers, [first * count for count in workers], color=OTHERS[0], linestyle=":", label="linear")
        axis.plot(workers, [row["inputs_per_second"] for row in rows], color=OURS, marker="o", label="measured")
        axis.set_xticks(workers)
        axis.set_ylim(0)
        axis.set_xlabel("workers")
        axis.set_title(titles[name])
        axis.grid(axis="y", linewidth=0.7)
        axis.legend(loc="upper left", fontsize=8.5)
    return made


def cache(result: Mapping[str, Any]) -> Figure:
    rows = result["rows"]
    title = f"Seconds for {result['texts']} short texts: with the cache and without"
    made, axes = figure(len(rows), 2 * ROW_INCHES + 0.4, title, result)
    for index, (axis, row) in enumerate(zip(axes, rows, strict=True)):
        values = {"with": row["with_seconds"], "without": row["without_seconds"]}
        bars(axis, values, (OURS, OTHERS[0]), {"with": f"×{row['ratio']:.2f}"}, names=index == 0)
        axis.set_title(row["texts"])
    return made


def gpu(result: Mapping[str, Any]) -> Figure:
    rows = result["cpu_against_gpu"]
    corpora = list(dict.fromkeys(row["corpus"] for row in rows))
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    title = "Texts per second: CPU and GPU" if result.get("gpu") else "Texts per second on a CPU"
    made, axes = figure(len(corpora), len(engines) * ROW_INCHES + 0.4, title, result)
    for index, (axis, corpus) in enumerate(zip(axes, corpora, strict=True)):
        found = {row["engine"]: row for row in rows if row["corpus"] == corpus}
        ratios = {name: f"×{number(row['ratio to torch float32 on cpu'])}" for name, row in found.items()}
        colours = [OURS if "cuda" in name else ENGINE if "openvino" in name else OTHERS[0] for name in found]
        bars(axis, {name: row["texts/s"] for name, row in found.items()}, colours, ratios, names=index == 0)
        axis.set_title(corpus)
    return made


def batches(result: Mapping[str, Any]) -> Figure:
    """Seconds by part; the native job is one."""
    made, (axis,) = figure(1, 1.5, f"A batch of {result['lines']:,} lines beside a native job, seconds", result)
    parts, start = result["batch_seconds"], 0.0
    axis.barh(0, result["native_seconds"], color=OTHERS[0], height=0.68)
    for (name, seconds), colour in zip(parts.items(), (WARM, PURPLE, OURS, GREEN, OTHERS[1]), strict=True):
        axis.barh(1, seconds, left=start, color=colour, height=0.68, label=f"{name} {number(seconds)} s")
        start += seconds
    axis.set_yticks((0, 1), ("native job", f"batch, ×{number(result['ratio'])}"))
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.45 * max(start, result["native_seconds"]))
    axis.legend(loc="center right", fontsize=8.5)
    return made


def metrics(result: Mapping[str, Any]) -> Figure:
    """Milliseconds of each page with an empty ledger, with a full one, and with many workers."""
    rows = result["rows"]
    paths = list(dict.fromkeys(row["path"] for row in rows))
    made, axes = figure(len(paths), 3 * ROW_INCHES + 0.4, "Reading the figures, milliseconds (median)", result)
    for index, (axis, path) in enumerate(zip(axes, paths, strict=True)):
        found = {
            f"{row['jobs']:,} jobs, {row['workers']} {'worker' if row['workers'] == 1 else 'workers'}": row
            for row in rows
            if row["path"] == path
        }
        notes = {name: f"99 %: {number(row['p99_ms'])}" for name, row in found.items()}
        bars(axis, {name: row["median_ms"] for name, row in found.items()}, (OURS, OURS, OURS), notes, names=index == 0)
        axis.set_title(path)
    return made


def overhead(result: Mapping[str, Any]) -> Figure:
    """Median seconds of a job, by the clock and of all CPUs."""
    kinds = {"seconds": "by the clock", "cpu_seconds": "of all CPUs"}
    made, axes = figure(2, 2 * ROW_INCHES + 0.4, f"A job of {result['texts']:,} short texts, seconds", result)
    for index, (axis, (kind, title)) in enumerate(zip(axes, kinds.items(), strict=True)):
        found = {name: statistics.median(row[name][kind] for row in result["rounds"]) for name in ("before", "now")}
        notes = {"before": "", "now": f"×{result[f'{kind}_ratio']:.3f}"}
        bars(axis, found, (OTHERS[0], OURS), notes, names=index == 0)
        axis.set_title(title)
    return made


DRAW: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
    "throughput": throughput,
    "throughput_avx2": throughput,
    "small_jobs": small_jobs,
    "peers": peers,
    "ledger": ledger,
    "cold_start": cold_start,
    "memory": memory,
    "redis_memory": redis_memory,
    "scale_out": scale_out,
    "downloads": downloads,
    "batches": batches,
    "cache": cache,
    "metrics": metrics,
    "overhead": overhead,
    "overhead_alone": overhead,
    "overhead_traced": overhead,
    "gpu": gpu,
}


def _settle(made: Figure) -> None:
    """Fix the places of all axes: the solver that finds them differs in the last digits from call to call."""
    made.draw_without_rendering()
    made.set_layout_engine("none")
    for axis in made.axes:
        axis.set_position([round(edge, 4) for edge in axis.get_position().bounds])


def draw(name: str, path: Path) -> Path:
    """Draw the result of the benchmark `name` in the JSON file `path`; the path of the SVG file beside it."""
    with matplotlib.rc_context(STYLE):
        made = DRAW[name](json.loads(path.read_text()))
        _settle(made)
        target = path.with_suffix(".svg")
        made.savefig(target, metadata={"Date": None, "Creator": None})
        plt.close(made)
    lines = target.read_text().splitlines()
    target.write_text("\n".join(line.rstrip() for line in lines) + "\n")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS, help="where the JSON files lie (bench/results)")
    folder = parser.parse_args().folder
    for name in DRAW:
        path = folder / f"{name}.json"
        if path.exists():
            target = draw(name, path)
            print(f"{target}, {math.ceil(target.stat().st_size / 1024)} kB")


if __name__ == "__main__":
    main()

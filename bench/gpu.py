"""How fast a CUDA device embeds, how far that is from its limit, and what padding, memory and `empty_cache` cost there.

    python -m bench.gpu [--device cuda|cpu] [--seconds 2] [--output bench/results/gpu.json]

Needs no network: the model of `MODEL_NAME` comes from a local folder, the hub's cache or the package with the default model;
where none has it, random weights of the same architecture stand in, which take as long. A bert-base of random weights is measured
beside it. The inputs are random token ids of given lengths, so tokenising is no part of any figure. `--device cpu` runs all but
the parts that need CUDA, small: it shows that this program works, and is no result.

`engine` is the torch engine, from ids in Python to vectors in numpy, with batches ahead as in a worker, by the wall clock;
`forward` is the forward pass alone over ids that lie on the device already, by CUDA events. The share is that of useful work, the
operations of the model's matrix products over tokens that are no padding, in the rate of `torch.matmul` in the same dtype.
"""

import argparse
import contextlib
import gc
import itertools
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a worker; read when torch is imported

import numpy as np
import torch
from huggingface_hub import constants

from bench.operations import Shape
from bench.setting import machine, save
from core.batching import batches
from core.config import Settings
from core.errors import EngineError, InvalidSetting, OutOfMemory
from worker.engines import Engine, Tokens
from worker.engines.device import resolve_device
from worker.engines.loading import load_engine
from worker.engines.model import Model
from worker.engines.torch_engine import TorchEngine, padding_told
from worker.engines.unpadded import Unpadded

Row = dict[str, Any]
Batch = Sequence[Tokens]

NOT_AVAILABLE = "not available"
NEVER = 2**40
"""More tokens than any batch has."""
LEEWAY_BYTES = 256 * 2**20
"""Memory that is left to the process when it shall run out."""
VOCABULARY = 30_522
"""Entries in the vocabulary of BERT and of MiniLM."""


DEVICE_FACTS = (
    *("allocated_bytes", "reserved_bytes", "used_bytes", "total_bytes"),
    *("utilization_ratio", "temperature_celsius", "power_watts", "torch_alloc_retries", "torch_ooms"),
)
"""What `/metrics` shows of a GPU."""


@dataclass(frozen=True)
class Subject:
    """A model to be measured: what to call it, and the settings that load it."""

    name: str
    settings: Settings
    shape: Shape | None
    vocabulary: int


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    device: str
    seconds: float
    dtypes: tuple[str, ...]
    budget_tokens: int
    budgets: tuple[int, ...]
    batches: int
    """Different batches of one corpus."""
    in_flight: int
    """Forward passes between two synchronisations."""

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class Rate:
    """What was done in a time."""

    texts: int
    tokens: int
    """Padding left out."""
    padded_tokens: int
    operations: int
    passes: int
    seconds: float

    @property
    def texts_per_second(self) -> float:
        return self.texts / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def batch_milliseconds(self) -> float:
        return self.seconds / self.passes * 1000

    @property
    def teraflops(self) -> float:
        return self.operations / self.seconds / 1e12


# Time ------------------------------------------------------------------------------------------------------------------


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def device_seconds(device: str, work: Callable[[], None]) -> float:
    """Seconds from the start of the first kernel to the end of the last: the host's lead over the device does not count."""
    if not device.startswith("cuda"):
        return wall_seconds(device, work)
    with torch.cuda.device(device):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        work()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1000


def wall_seconds(device: str, work: Callable[[], None]) -> float:
    """Seconds by the clock on the wall, from an idle device to an idle device."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def rate(
    plan: Plan,
    shape: Shape | None,
    corpus: Sequence[Batch],
    passes: Sequence[Callable[[], Any]],
    clock: Callable[[str, Callable[[], None]], float],
) -> Rate:
    """The rate of `passes`, one for each batch of the corpus, again and again for `plan.seconds`.

    First comes one pass over all of them on CUDA, since each new shape costs choices and allocations, and one batch on a cpu.
    """
    for run in passes if plan.cuda else passes[:1]:
        run()
    synchronize(plan.device)
    order = itertools.cycle(zip(corpus, passes, strict=True))
    done: list[Batch] = []
    spent, end = 0.0, time.perf_counter() + plan.seconds
    while not done or time.perf_counter() < end:
        group = list(itertools.islice(order, plan.in_flight))

        def work(group: Sequence[tuple[Batch, Callable[[], Any]]] = group) -> None:
            for _, run in group:
                run()

        spent += clock(plan.device, work)
        done += [batch for batch, _ in group]
    lengths = [[len(item.ids) for item in batch] for batch in done]
    return Rate(
        texts=sum(map(len, lengths)),
        tokens=sum(map(sum, lengths)),
        padded_tokens=sum(max(batch) * len(batch) for batch in lengths),
        operations=sum(shape.operations(tokens) for batch in lengths for tokens in batch) if shape else 0,
        passes=len(done),
        seconds=spent,
    )


def matrix_teraflops(device: str, dtype: str, seconds: float) -> float:
    """The best rate of `torch.matmul` over a few sizes of square matrices: what the device can do at most."""
    best = 0.0
    for size in (2048, 4096, 8192) if device.startswith("cuda") else (1024,):
        left, right = (torch.rand(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
        out = torch.empty_like(left)

        def work(left: torch.Tensor = left, right: torch.Tensor = right, out: torch.Tensor = out) -> None:
            for _ in range(4):
                torch.matmul(left, right, out=out)

        work()
        end, first = time.perf_counter() + seconds / 3, True
        while first or time.perf_counter() < end:
            best, first = max(best, 4 * 2 * size**3 / device_seconds(device, work) / 1e12), False
    return best


# Models and inputs -----------------------------------------------------------------------------------------------------


def random_model(folder: Path, shape: Shape, heads: int, max_tokens: int) -> str:
    """A folder with a sentence-transformers model of random weights and a vocabulary without words."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        intermediate_size=shape.intermediate,
    )
    torch.manual_seed(0)
    base = folder / "base"
    BertModel(config).save_pretrained(base)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    entries = [*special, *(f"token{number}" for number in range(VOCABULARY - len(special)))]
    (base / "vocab.txt").write_text("\n".join(entries) + "\n")
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    parts = [Transformer(str(base), max_seq_length=max_tokens), Pooling(shape.hidden), Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save_pretrained(str(folder / "model"))
    return str(folder / "model")


def subjects(folder: Path) -> list[Subject]:
    """The model of the settings, or a MiniLM-L6-H384 of random weights where it cannot be loaded, and a bert-base."""
    settings = replace(Settings.from_env(), engine="torch", parity=False, cache_dir=str(folder / "cache"))
    try:
        found = [_subject(settings.model_name, settings)]
    except EngineError as error:
        print(f"{error.message}\n")
        source = random_model(folder / "minilm", Shape(layers=6, hidden=384, intermediate=1536), heads=12, max_tokens=256)
        found = [_subject("MiniLM-L6-H384, random weights", replace(settings, model_name=source, model_revision=None))]
    source = random_model(folder / "bert", Shape(layers=12, hidden=768, intermediate=3072), heads=12, max_tokens=512)
    return [*found, _subject("bert-base, random weights", replace(settings, model_name=source, model_revision=None))]


def _subject(name: str, settings: Settings) -> Subject:
    model = Model.load(settings, "cpu", torch.float32)
    return Subject(name, settings, Shape.of(model.module), len(model.tokenizer))


def text_of(length: int, vocabulary: int, source: random.Random) -> Tokens:
    """An input of random ids, none of which is special in the vocabularies of BERT."""
    least = min(2_000, vocabulary // 2)
    return Tokens([source.randrange(least, vocabulary) for _ in range(length)], truncated=False)


def lengths(corpus: str, max_tokens: int, source: random.Random) -> Iterator[int]:
    """Tokens of one text after the other: about 18 in `short`, about 207 in `passages`, 6 to the maximum in `mixed`."""
    while True:
        if corpus == "short":
            found = source.randint(10, 26)
        elif corpus == "passages":
            found = source.randint(160, 254)
        else:
            found = max(6, int(source.lognormvariate(4.0, 1.0)))
        yield min(found, max_tokens)


CORPORA = ("short", "passages", "mixed")


def texts_of(subject: Subject, corpus: str, max_tokens: int, tokens: int) -> list[Tokens]:
    """Texts of a corpus with so many tokens in all, the same at every call."""
    source = random.Random(corpus)
    found, total = [], 0
    for length in lengths(corpus, max_tokens, source):
        found.append(text_of(length, subject.vocabulary, source))
        total += length
        if total >= tokens:
            return found
    return found


def sorted_batches(texts: Sequence[Tokens], budget_tokens: int, *, unpadded: bool = False) -> list[Batch]:
    """The batches that a worker makes, in random order: they come longest first, and a short run would see long texts only."""
    groups = batches([len(text.ids) for text in texts], budget_tokens, unpadded=unpadded)
    found: list[Batch] = [[texts[index] for index in group] for group in groups]
    random.Random(1).shuffle(found)
    return found


def arriving_batches(texts: Sequence[Tokens], budget_tokens: int) -> list[Batch]:
    """Batches of texts as they come, of the same budget, padding included."""
    found: list[list[Tokens]] = []
    longest = 0
    for text in texts:
        longest = max(longest, len(text.ids))
        if not found or longest * (len(found[-1]) + 1) > budget_tokens:
            found.append([])
            longest = len(text.ids)
        found[-1].append(text)
    return list(found)


def load(subject: Subject, device: str, dtype: str, **settings: Any) -> TorchEngine:
    return TorchEngine.load(replace(subject.settings, dtype=dtype, **settings), device)


@contextlib.contextmanager
def released(device: str) -> Iterator[None]:
    """Afterwards the models that were loaded within take no memory of the device."""
    try:
        yield
    finally:
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()


# The forward pass, with and without padding --------------------------------------------------------------------------------


class Padded:
    """The forward pass of a model over a batch that lies on the device, padded to its longest text."""

    def __init__(self, model: Model, device: str) -> None:
        self._model = model
        self._device = device

    def prepare(self, batch: Batch) -> dict[str, Any]:
        padded = self._model.pad(batch)
        features = {name: torch.from_numpy(array).to(self._device) for name, array in padded.items()}
        return features | {"padded": not padded["attention_mask"].all()}

    @torch.inference_mode()
    def forward(self, features: dict[str, Any]) -> torch.Tensor:
        given = dict(features)
        with padding_told(given.pop("padded")):
            vectors: torch.Tensor = self._model.module(given)["sentence_embedding"]
        return vectors


class InOneRow:
    """The same without padding, as the engine does with `UNPADDED=1`. From then on the model takes no padded batches.

    Raises:
        InvalidSetting: the engine does not do that for such a model.
    """

    def __init__(self, model: Model, device: str) -> None:
        self._model = model
        self._device = device
        self._unpadded = Unpadded(model)

    def prepare(self, batch: Batch) -> dict[str, Any]:
        row = self._unpadded.row(batch)
        return {
            name: torch.from_numpy(value).to(self._device) if isinstance(value, np.ndarray) else value
            for name, value in row.items()
        }

    @torch.inference_mode()
    def forward(self, features: dict[str, Any]) -> torch.Tensor:
        vectors: torch.Tensor = self._model.module(dict(features))["sentence_embedding"]
        return vectors


class Ahead:
    """Batches through an engine as a worker sends them: so many are started before the vectors of the first are read."""

    def __init__(self, engine: Engine, ahead: int) -> None:
        self._engine = engine
        self._ahead = ahead
        self._started: deque[Callable[[], Any]] = deque()

    def embed(self, batch: Batch) -> None:
        self._started.append(self._engine.start(batch))
        while len(self._started) > self._ahead:
            self._started.popleft()()


def forward_rate(plan: Plan, shape: Shape | None, model: Padded | InOneRow, corpus: Sequence[Batch]) -> Rate:
    prepared = [model.prepare(batch) for batch in corpus]
    passes = [lambda features=features: model.forward(features) for features in prepared]
    return rate(plan, shape, corpus, passes, device_seconds)


def engine_rate(plan: Plan, shape: Shape | None, engine: Engine, corpus: Sequence[Batch], ahead: int | None = None) -> Rate:
    """With as many batches ahead as the engine says, or so many."""
    pipeline = Ahead(engine, engine.facts.ahead if ahead is None else ahead)
    return rate(plan, shape, corpus, [lambda batch=batch: pipeline.embed(batch) for batch in corpus], wall_seconds)


def worst_cosine(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(found.double(), wanted.double()).min().item()


# The tables ------------------------------------------------------------------------------------------------------------


def throughput(plan: Plan, subject: Subject, limits: dict[str, float]) -> Iterator[Row]:
    for dtype in plan.dtypes:
        with released(plan.device):
            engine = load(subject, plan.device, dtype)
            bare = Padded(Model.load(subject.settings, plan.device, getattr(torch, dtype)), plan.device)
            for name in CORPORA:
                texts = texts_of(subject, name, engine.facts.max_tokens, plan.batches * plan.budget_tokens)
                corpus = sorted_batches(texts, plan.budget_tokens)
                whole = engine_rate(plan, subject.shape, engine, corpus)
                forward = forward_rate(plan, subject.shape, bare, corpus)
                yield {
                    "model": subject.name,
                    "dtype": dtype,
                    "corpus": name,
                    "tokens/text": whole.tokens / whole.texts,
                    "engine texts/s": whole.texts_per_second,
                    "engine tokens/s": whole.tokens_per_second,
                    "forward texts/s": forward.texts_per_second,
                    "forward tokens/s": forward.tokens_per_second,
                    "forward TFLOP/s": forward.teraflops if subject.shape else NOT_AVAILABLE,
                    "engine share": whole.teraflops / limits[dtype] if subject.shape else NOT_AVAILABLE,
                    "forward share": forward.teraflops / limits[dtype] if subject.shape else NOT_AVAILABLE,
                    "padding": 1 - whole.tokens / whole.padded_tokens,
                    "engine/forward": whole.texts_per_second / forward.texts_per_second,
                }
            del engine, bare


def budgets(plan: Plan, subject: Subject) -> Iterator[Row]:
    with released(plan.device):
        engine = load(subject, plan.device, "auto", empty_cache_tokens=NEVER)
        for name, budget in itertools.product(("short", "passages"), plan.budgets):
            texts = texts_of(subject, name, engine.facts.max_tokens, 4 * budget)
            corpus = sorted_batches(texts, budget)
            row: Row = {"model": subject.name, "dtype": engine.facts.dtype, "corpus": name, "budget tokens": budget}
            if plan.cuda:
                engine.free_memory()
                torch.cuda.reset_peak_memory_stats(plan.device)
            try:
                found = engine_rate(plan, subject.shape, engine, corpus)
            except OutOfMemory as error:
                engine.free_memory()
                yield row | {"texts/s": "out of memory", "tokens/s": "", "ms/batch": "", "peak MB": error.message}
                continue
            peak = torch.cuda.max_memory_allocated(plan.device) / 1e6 if plan.cuda else "needs CUDA"
            yield row | {
                "texts/s": found.texts_per_second,
                "tokens/s": found.tokens_per_second,
                "ms/batch": found.batch_milliseconds,
                "peak MB": peak,
            }
        del engine


def padding(plan: Plan, subject: Subject) -> Iterator[Row]:
    """The forward pass over the mixed corpus: batches as texts come, sorted batches, and the same without padding."""
    for dtype in plan.dtypes:
        with released(plan.device):
            model = Model.load(subject.settings, plan.device, getattr(torch, dtype))
            texts = texts_of(subject, "mixed", model.max_tokens, plan.batches * plan.budget_tokens)
            corpus = sorted_batches(texts, plan.budget_tokens)
            arriving = arriving_batches(texts, plan.budget_tokens)
            padded = Padded(model, plan.device)
            base = forward_rate(plan, subject.shape, padded, arriving)
            rows = [("padded, as they come", base, 1.0)]
            rows.append(("padded, sorted", forward_rate(plan, subject.shape, padded, corpus), 1.0))
            wanted = padded.forward(padded.prepare(arriving[0]))
            reason = ""
            try:
                unpadded = InOneRow(model, plan.device)
                cosine = worst_cosine(unpadded.forward(unpadded.prepare(arriving[0])), wanted)
                for what, some in (("unpadded, as they come", arriving), ("unpadded, sorted", corpus)):
                    rows.append((what, forward_rate(plan, subject.shape, unpadded, some), cosine))
                del unpadded
            except (RuntimeError, InvalidSetting) as error:  # flash attention needs half precision and a newer card
                reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            for what, found, cosine in rows:
                yield {
                    "model": subject.name,
                    "dtype": dtype,
                    "batches": what,
                    "texts/s": found.texts_per_second,
                    "tokens/s": found.tokens_per_second,
                    "padding": 0.0 if what.startswith("unpadded") else 1 - found.tokens / found.padded_tokens,
                    "ratio": found.texts_per_second / base.texts_per_second,
                    "worst cosine": f"{cosine:.6f}",
                }
            if reason:
                yield {
                    "model": subject.name,
                    "dtype": dtype,
                    "batches": "unpadded",
                    "texts/s": f"{NOT_AVAILABLE}: {reason}",
                    "tokens/s": "",
                    "padding": "",
                    "ratio": "",
                    "worst cosine": "",
                }
            del model, padded


def pipelines(plan: Plan, subject: Subject) -> Iterator[Row]:
    """The engine with nothing ahead, with one batch ahead, and with that and no padding, in turns, three rounds each."""
    ways: dict[str, tuple[dict[str, bool], int]] = {"nothing ahead": ({}, 0), "one batch ahead": ({}, 1)}
    if plan.cuda:
        ways["one ahead, unpadded"] = ({"unpadded": True}, 1)
    with released(plan.device):
        engines: dict[str, TorchEngine] = {}
        for name, (settings, _) in ways.items():
            with contextlib.suppress(InvalidSetting):  # the model needs padding
                engines[name] = load(subject, plan.device, "auto", **settings)
        some = next(iter(engines.values()))
        for corpus_name in CORPORA:
            texts = texts_of(subject, corpus_name, some.facts.max_tokens, plan.batches * plan.budget_tokens)
            rounds: dict[str, list[Rate]] = {name: [] for name in engines}
            for _, (name, engine) in itertools.product(range(3), engines.items()):
                corpus = sorted_batches(texts, plan.budget_tokens, unpadded=engine.facts.unpadded)
                try:
                    found = engine_rate(replace(plan, seconds=plan.seconds / 3), subject.shape, engine, corpus, ways[name][1])
                    rounds[name].append(found)
                except RuntimeError as error:  # flash attention needs a newer card
                    print(f"{name}: {NOT_AVAILABLE}: {str(error).splitlines()[0][:120]}\n")
            speeds = {name: float(np.median([r.texts_per_second for r in done])) for name, done in rounds.items() if done}
            for name, speed in speeds.items():
                yield {
                    "model": subject.name,
                    "dtype": some.facts.dtype,
                    "corpus": corpus_name,
                    "engine": name,
                    "texts/s": speed,
                    "ratio to nothing ahead": speed / speeds["nothing ahead"],
                }
        del engines, some, engine


def launches(plan: Plan, subject: Subject) -> Iterator[Row]:
    """A pass whose kernels are launched one by one, as a CUDA graph, and compiled. Small batches wait for their launches."""
    with released(plan.device):
        yield from launch_rows(plan, subject)


def launch_rows(plan: Plan, subject: Subject) -> list[Row]:
    dtype = "float16" if plan.cuda else "float32"
    model = Model.load(subject.settings, plan.device, getattr(torch, dtype))
    bare, source = Padded(model, plan.device), random.Random(3)
    shapes = ((1, 16), (8, 32), (32, min(256, model.max_tokens)))
    inputs = [bare.prepare([text_of(tokens, subject.vocabulary, source) for _ in range(texts)]) for texts, tokens in shapes]
    rows: list[Row] = []
    for name in ("launched", "CUDA graph", "torch.compile"):
        if name == "torch.compile":
            model.module[0].auto_model.compile(dynamic=True)  # in place, so last
        for number, (features, (texts, tokens)) in enumerate(zip(inputs, shapes, strict=True)):
            row: Row = {"model": subject.name, "dtype": dtype, "texts": texts, "tokens/text": tokens, "pass": name}

            def run(features: dict[str, Any] = features) -> None:
                bare.forward(features)

            try:
                ms = milliseconds_of(plan, graph_of(run) if name == "CUDA graph" else run)
                rows.append(row | {"ms": ms, "ratio": (rows[number]["ms"] if number < len(rows) else ms) / ms})
            except Exception as error:  # a compiler may be absent, or fail in any way
                reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
                rows.append(row | {"ms": f"{NOT_AVAILABLE}: {reason}", "ratio": ""})
    return rows


def milliseconds_of(plan: Plan, run: Callable[[], Any], passes: int = 20) -> float:
    """Median time of a pass among others, by the clock on the wall."""

    def work() -> None:
        for _ in range(passes):
            run()

    work()
    return float(np.median([wall_seconds(plan.device, work) for _ in range(7)])) / passes * 1000


def graph_of(run: Callable[[], Any]) -> Callable[[], Any]:
    """The kernels of a pass, to be launched in one call, always on the same memory."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # a pass before the capture, on another stream, as torch asks for
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def empty_cache_calls(plan: Plan, subject: Subject) -> Iterator[Row]:
    """What one call costs, and what it costs the batch after it, which has to ask the driver for its memory again."""
    with released(plan.device):
        engine = load(subject, plan.device, "auto", empty_cache_tokens=NEVER)
        for budget in (plan.budget_tokens, 4 * plan.budget_tokens):
            batch = sorted_batches(texts_of(subject, "passages", engine.facts.max_tokens, budget), budget)[0]

            def embed(engine: Engine = engine, batch: Batch = batch) -> None:
                engine.embed(batch)

            embed()
            found: dict[str, list[float]] = {"full": [], "empty": [], "after": [], "steady": []}
            for _ in range(20):
                found["steady"].append(wall_seconds(plan.device, embed))
                cached = torch.cuda.memory_reserved(plan.device) - torch.cuda.memory_allocated(plan.device)
                found["full"].append(wall_seconds(plan.device, torch.cuda.empty_cache))
                found["empty"].append(wall_seconds(plan.device, torch.cuda.empty_cache))
                found["after"].append(wall_seconds(plan.device, embed))
            ms = {name: float(np.median(values)) * 1000 for name, values in found.items()}
            yield {
                "model": subject.name,
                "dtype": engine.facts.dtype,
                "budget tokens": budget,
                "MB given back": cached / 1e6,
                "call ms": ms["full"],
                "call ms, nothing to give": ms["empty"],
                "batch ms": ms["steady"],
                "batch ms after a call": ms["after"],
                "cost of call and next batch": (ms["full"] + ms["after"] - ms["steady"]) / ms["steady"],
            }
        del engine, embed


def empty_cache_policies(plan: Plan, subject: Subject) -> Iterator[Row]:
    """The policies in turns, three rounds each, over batches of two budgets: one below `EMPTY_CACHE_TOKENS`, one above."""
    limit = subject.settings.empty_cache_tokens
    policies = {"never": NEVER, "after each batch": 1, f"batches >= {limit:,} tokens": limit}
    with released(plan.device):
        engines = {name: load(subject, plan.device, "auto", empty_cache_tokens=tokens) for name, tokens in policies.items()}
        any_engine = next(iter(engines.values()))
        for budget in (limit // 2, limit * 5 // 4):
            corpus = sorted_batches(texts_of(subject, "mixed", any_engine.facts.max_tokens, 4 * plan.batches * budget), budget)
            rounds: dict[str, list[Rate]] = {name: [] for name in policies}
            calls = dict.fromkeys(policies, 0)
            reserved = dict.fromkeys(policies, 0)
            for _, (name, engine) in itertools.product(range(3), engines.items()):
                engine.free_memory()
                torch.cuda.reset_peak_memory_stats(plan.device)
                before = torch.cuda.memory_stats(plan.device).get("num_device_free", 0)
                rounds[name].append(engine_rate(replace(plan, seconds=plan.seconds / 3), subject.shape, engine, corpus))
                calls[name] += torch.cuda.memory_stats(plan.device).get("num_device_free", 0) - before
                reserved[name] = max(reserved[name], torch.cuda.memory_reserved(plan.device))
            speeds = {name: float(np.median([found.texts_per_second for found in done])) for name, done in rounds.items()}
            for name in policies:
                yield {
                    "model": subject.name,
                    "dtype": any_engine.facts.dtype,
                    "budget tokens": budget,
                    "policy": name,
                    "texts/s": speeds[name],
                    "ratio to never": speeds[name] / speeds["never"],
                    "frees by the driver": calls[name],
                    "MB reserved at the end": reserved[name] / 1e6,
                }
        del engines, any_engine, engine


def forced_out_of_memory(plan: Plan, subject: Subject) -> Iterator[Row]:
    """Leave the process little memory, embed ever larger batches until one does not fit, and see what is left of it."""
    with released(plan.device):
        engine = load(subject, plan.device, "auto")
        longest, source = engine.facts.max_tokens, random.Random(2)
        small = [text_of(min(longest, 20 + 10 * index), subject.vocabulary, source) for index in range(8)]
        wanted = engine.embed(small)
        engine.free_memory()
        before = engine.memory()
        allowed = before["reserved_bytes"] + LEEWAY_BYTES
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / before["total_bytes"]), plan.device)
        large: list[Tokens] = [text_of(longest, subject.vocabulary, source)] * 64
        raised = ""
        try:
            while not raised and len(large) * longest <= 2**23:
                try:
                    engine.embed(large)
                    large *= 2
                except OutOfMemory as error:
                    raised = error.message
            after = engine.memory()
            squeezed = engine.embed(small)  # before anything is given back, and with as little memory as before
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, plan.device)
        engine.free_memory()
        freed = engine.memory()
        again = engine.embed(small)
        cosines = [worst_cosine(torch.from_numpy(found), torch.from_numpy(wanted)) for found in (squeezed, again)]
        works = raised and min(cosines) > 0.9999
        yield {
            "model": subject.name,
            "error": raised or "did not run out",
            "allocated MB before": before["allocated_bytes"] / 1e6,
            "after": after["allocated_bytes"] / 1e6,
            "freed": freed["allocated_bytes"] / 1e6,
            "reserved MB before": before["reserved_bytes"] / 1e6,
            "after ": after["reserved_bytes"] / 1e6,
            "freed ": freed["reserved_bytes"] / 1e6,
            "works after": "yes" if works else "no",
            "worst cosine": f"{min(cosines):.6f}",
        }
        del engine


def device_figures(plan: Plan, subject: Subject) -> Iterator[Row]:
    """What a worker reports of its device once it has worked for a while, beside what the driver's own tool says of it."""
    with released(plan.device):
        engine = load(subject, plan.device, "auto")
        corpus = sorted_batches(
            texts_of(subject, "passages", engine.facts.max_tokens, 4 * plan.budget_tokens), plan.budget_tokens
        )
        engine_rate(plan, subject.shape, engine, corpus)
        found = engine.memory() | engine.device_figures()
        driver_says = smi(str(torch.cuda.get_device_properties(plan.device).uuid))
        for name in DEVICE_FACTS:
            value = found.get(name)
            yield {
                "figure": name,
                "worker reports": NOT_AVAILABLE if value is None else value,
                "nvidia-smi says": driver_says.get(name, ""),
            }
        seen = found.get("used_bytes", 0) >= found["reserved_bytes"] and found.get("temperature_celsius", 0) > 0
        yield {"figure": "plausible", "worker reports": "yes" if seen else "NO", "nvidia-smi says": ""}
        del engine


def smi(uuid: str) -> dict[str, float]:
    """The same figures as `nvidia-smi` tells them; none where it is missing, or the device is a part of a card."""
    names = {"memory.used": "used_bytes", "memory.total": "total_bytes", "utilization.gpu": "utilization_ratio"}
    names |= {"temperature.gpu": "temperature_celsius", "power.draw": "power_watts"}
    scale = {"used_bytes": 2**20, "total_bytes": 2**20, "utilization_ratio": 0.01}
    asked = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits", f"--id=GPU-{uuid}"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout.split(",")
        return {name: float(value) * scale.get(name, 1) for name, value in zip(names.values(), told, strict=True)}
    return {}


def cpu_against_gpu(plan: Plan, subject: Subject) -> Iterator[Row]:
    """The engines of the CPU and, where there is one, of the GPU on the same texts, one after the other in each corpus."""
    on_cpu = replace(plan, device="cpu", budget_tokens=2048 if plan.cuda else plan.budget_tokens, in_flight=1)
    with released(plan.device):
        engines: list[tuple[Plan, Engine]] = [(on_cpu, load(subject, "cpu", "float32"))]
        best = load_engine(replace(subject.settings, device="cpu", engine="auto"))
        if best.facts.engine != "torch":
            engines.append((on_cpu, best))
        if plan.cuda:
            engines.append((plan, load(subject, plan.device, "auto")))
        max_tokens = engines[0][1].facts.max_tokens
        for name in CORPORA:
            texts = texts_of(subject, name, max_tokens, plan.batches * plan.budget_tokens)
            speeds = []
            for how, engine in engines:
                found = engine_rate(how, subject.shape, engine, sorted_batches(texts, how.budget_tokens))
                speeds.append(found.texts_per_second)
                yield {
                    "model": subject.name,
                    "corpus": name,
                    "engine": f"{engine.facts.engine} {engine.facts.dtype} on {engine.facts.device}",
                    "budget tokens": how.budget_tokens,
                    "texts/s": found.texts_per_second,
                    "tokens/s": found.tokens_per_second,
                    "ratio to torch float32 on cpu": speeds[-1] / speeds[0],
                    "ratio to the best above": speeds[-1] / max(speeds[:-1], default=speeds[0]),
                }
        del engines, best, engine


# Output ----------------------------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(title: str, rows: Sequence[Row]) -> None:
    cells = [{head: shown(value) for head, value in row.items()} for row in rows]
    widths = {head: max(len(head.strip()), *(len(row[head]) for row in cells)) for head in cells[0]}
    print(f"{title}\n")
    for row in ({head: head.strip() for head in widths}, {head: "-" * width for head, width in widths.items()}, *cells):
        print("| " + " | ".join(row[head].rjust(width) for head, width in widths.items()) + " |")
    print(flush=True)


def driver() -> str:
    """Version of NVIDIA's driver."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout.split()[0]
    with contextlib.suppress(OSError):
        found = re.search(r"Module\s+([\d.]+)", Path("/proc/driver/nvidia/version").read_text())
        return found.group(1) if found else "unknown"
    return "unknown"


def gpu(device: str) -> dict[str, Any]:
    facts = torch.cuda.get_device_properties(device)
    return {
        "name": facts.name,
        "driver": driver(),
        "cuda": torch.version.cuda,
        "compute_capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "total_bytes": facts.total_memory,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def plan_for(device: str, seconds: float) -> Plan:
    if device.startswith("cuda"):
        half = ("float16", "bfloat16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("float16",)
        return Plan(device, seconds, ("float32", *half), 16_384, tuple(2**power for power in range(11, 19)), 8, 8)
    return Plan(device, seconds, ("float32",), 256, (256, 512), 2, 1)  # half precision may be emulated, and take minutes


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=2.0, help="time of each measurement (%(default)s)")
    parser.add_argument(
        "--output", type=Path, help="JSON file (on cuda bench/results/gpu.json, on cpu none); the picture lies beside it"
    )
    options = parser.parse_args()
    constants.HF_HUB_OFFLINE = True
    try:
        device = resolve_device(options.device)
    except EngineError as error:
        print(f"{error.message}. `--device cpu` tries this program without a GPU.", file=sys.stderr)
        return 1
    plan = plan_for(device, options.seconds)
    facts = machine()
    results: dict[str, Any] = {"machine": facts, "gpu": gpu(device) if plan.cuda else None, "plan": asdict(plan)}
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    print(f"{facts['cpu']}, {os.cpu_count()} CPUs, Python {facts['python']}, {versions}, {facts['date']}")
    if plan.cuda:
        print("{name}, driver {driver}, CUDA {cuda}, float32 products: {float32_matmul_precision}".format(**results["gpu"]))
    print()

    limits = {dtype: matrix_teraflops(device, dtype, options.seconds) for dtype in plan.dtypes}
    results["matrix"] = [{"dtype": dtype, "TFLOP/s": limit} for dtype, limit in limits.items()]
    table("The device's own limit: torch.matmul", results["matrix"])
    with tempfile.TemporaryDirectory(prefix="vector-api-bench-") as name:
        models = subjects(Path(name))
        few = models if plan.cuda else models[:1]
        parts: list[tuple[str, str, list[Subject], Callable[[Subject], Iterator[Row]], bool]] = [
            ("throughput", f"Batches of {plan.budget_tokens:,} tokens", models, lambda s: throughput(plan, s, limits), False),
            ("budgets", "Token budgets, engine", few, lambda s: budgets(plan, s), False),
            ("padding", "Padded against unpadded, mixed corpus, forward", few, lambda s: padding(plan, s), False),
            ("pipelines", "Batches ahead, and without padding, engine", few, lambda s: pipelines(plan, s), False),
            ("launches", "Launches, CUDA graphs, torch.compile, forward", models, lambda s: launches(plan, s), True),
            ("empty_cache_calls", "Cost of empty_cache()", models, lambda s: empty_cache_calls(plan, s), True),
            ("empty_cache_policies", "When to call empty_cache()", models, lambda s: empty_cache_policies(plan, s), True),
            ("out_of_memory", "Forced out of memory", models, lambda s: forced_out_of_memory(plan, s), True),
            ("device_figures", "What a worker reports of its device", models[:1], lambda s: device_figures(plan, s), True),
            ("cpu_against_gpu", "CPU and GPU" if plan.cuda else "CPU", few, lambda s: cpu_against_gpu(plan, s), False),
        ]
        for key, title, chosen, measure, needs_cuda in parts:
            if needs_cuda and not plan.cuda:
                results[key] = "skipped: needs CUDA"
                print(f"{title}: skipped, needs CUDA\n")
                continue
            results[key] = [row for subject in chosen for row in measure(subject)]
            table(title, results[key])
    if options.output is None and not plan.cuda:
        print("nothing written: a run on a cpu is no result (--output writes it all the same)")
        return 0
    save("gpu", results, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How far an engine is from float32 torch: the worst cosine over a few golden texts."""

import numpy as np

from worker.engines import Engine
from worker.engines.torch_engine import TorchEngine

GOLDEN_TEXTS = (
    "a",
    "What is the capital of France?",
    "The quick brown fox jumps over the lazy dog.",
    "Order #48213 was shipped on 2024-03-17 for $1,299.00 (tracking: 1Z999AA10123456784).",
    "def cosine(a, b):\n    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))",
    "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist Verpflichtung aller staatlichen Gewalt.",
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "Ничто так не обманывает, как ясность.  Всё   смешалось в доме.",
    "😀 👩‍🔬 naïve façade — “quotes” … ½ ² €",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, " * 3,
    "The patient was given 5 mg of the drug twice a day; the blood pressure fell from 150/95 to 128/82 mmHg. " * 12,
    "word " * 600,
)
"""Short and long, several scripts, code, numbers, and one text beyond every usual maximum."""


def parity(engine: Engine, reference: TorchEngine) -> float:
    """The worst cosine between the engine's vectors, embedded as one batch, and the reference's, each text alone."""
    tokens = engine.tokenize(GOLDEN_TEXTS, None)
    found = engine.embed(tokens).astype(np.float64)
    wanted = np.concatenate([reference.embed([item]) for item in tokens]).astype(np.float64)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    return float(((found * wanted).sum(axis=1) / norms).min())

"""Batches without padding: the texts one after the other in a single row, each attending to itself alone.

transformers hands the borders of the texts down to the attention function, which is registered here; sentence-transformers pools
such rows by itself. On cuda the attention is torch's flash attention for texts of different lengths, in half precision. On a CPU,
where torch has none, each text attends in a call of its own: slow, but it shows that the row is laid out right.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from core.errors import InvalidSetting
from worker.engines import Tokens
from worker.engines.model import Model

NAME = "vector_api_unpadded"

KINDS = ("bert", "roberta", "xlm-roberta")
"""Models whose attention sees all of a text, and nothing but queries, keys and values. No other was tried."""


class Unpadded:
    """Lays out batches for a model, whose attention it changes: from then on the model takes no padded batches."""

    def __init__(self, model: Model) -> None:
        """Raises InvalidSetting for a model that is none of `KINDS`."""
        transformer: Any = getattr(model.module[0], "auto_model", None)
        kind = getattr(getattr(transformer, "config", None), "model_type", "unknown")
        if kind not in KINDS:
            raise InvalidSetting(f"UNPADDED=1 takes models of type {', '.join(KINDS)}; this one is {kind}", param="UNPADDED")
        self._first_position = 0 if kind == "bert" else transformer.config.pad_token_id + 1
        AttentionInterface.register(NAME, attend)
        transformer.set_attn_implementation(NAME)

    def row(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        """`input_ids`, `position_ids` and `seq_idx`, (1, tokens), the borders of the texts, (len(batch) + 1,), the longest."""
        counts = [len(item.ids) for item in batch]
        borders = np.cumsum([0, *counts], dtype=np.int32)
        return {
            "input_ids": np.concatenate([np.asarray(item.ids, dtype=np.int64) for item in batch])[None],
            "position_ids": np.concatenate([np.arange(count) for count in counts])[None] + self._first_position,
            "seq_idx": np.repeat(np.arange(len(batch)), counts)[None],
            "cu_seq_lens_q": borders,
            "cu_seq_lens_k": borders,
            "max_length_q": max(counts),
            "max_length_k": max(counts),
        }


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each text, (1, tokens, heads, width), of queries, keys and values of (1, heads, tokens, width).

    A padded batch has no borders and is refused by a TypeError: its mask would count for nothing here.
    """
    if query.is_cuda:
        borders, longest = cu_seq_lens_q, max_length_q
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        row: Any = varlen_attn(q, k, v, borders, borders, longest, longest, scale=scaling)
        return row[None], None
    counts = cu_seq_lens_q.diff().tolist()
    parts = zip(*(torch.split_with_sizes(tensor, counts, dim=2) for tensor in (query, key, value)), strict=True)
    texts = [torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scaling) for q, k, v in parts]
    return torch.cat(texts, dim=2).transpose(1, 2), None

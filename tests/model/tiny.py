"""Models of every shape, made small: random weights, the tokenizer of the real model."""

from pathlib import Path
from typing import Any

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def tiny_transformer(folder: Path, model_folder: Path, kind: str) -> Any:
    """A transformer module, 32 dimensions and 128 tokens at most."""
    import torch
    import transformers
    from sentence_transformers.sentence_transformer.modules import Transformer

    torch.manual_seed(7)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(model_folder))
    if kind != "bert":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]  # they take no token_type_ids
    words, pad = len(tokenizer), tokenizer.pad_token_id
    match kind:
        case "bert":
            model = transformers.BertModel(transformers.BertConfig(vocab_size=words, **SIZES))
        case "distilbert":
            sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
            model = transformers.DistilBertModel(transformers.DistilBertConfig(vocab_size=words, **sizes))
        case "xlm-roberta":  # its positions begin after the padding's id
            config = transformers.XLMRobertaConfig(vocab_size=words, pad_token_id=pad, **SIZES)
            model = transformers.XLMRobertaModel(config)
        case "mpnet":  # its attention is its own, with a bias for relative positions
            model = transformers.MPNetModel(transformers.MPNetConfig(vocab_size=words, pad_token_id=pad, **SIZES))
        case "modernbert":  # rotary positions; every third layer sees all, the others a window
            config = transformers.ModernBertConfig(vocab_size=words, pad_token_id=pad, local_attention=16, **SIZES)
            model = transformers.ModernBertModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Transformer(str(folder), max_seq_length=128)


def tiny_model(
    folder: Path,
    model_folder: Path,
    kind: str,
    pooling: str,
    *,
    dense: bool = False,
    normalize: bool = False,
    prompt: bool = False,
) -> Path:
    """A folder with a model; `prompt` gives it one that pooling leaves out."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling

    transformer = tiny_transformer(folder / "base", model_folder, kind)
    parts: list[Any] = [transformer, Pooling(32, pooling_mode=pooling, include_prompt=not prompt)]
    parts += [Dense(32, 16)] if dense else []
    parts += [Normalize()] if normalize else []
    prompts = {"query": "Represent this question: "} if prompt else None
    SentenceTransformer(modules=parts, device="cpu", prompts=prompts).save_pretrained(str(folder / "model"))
    return folder / "model"

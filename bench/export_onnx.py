"""Write a sentence-transformers model as ONNX into a folder from which infinity's optimum engine starts.

    .venv-peers/bin/python bench/export_onnx.py MODEL_FOLDER OUTPUT_FOLDER

Run in the peers' environment, so it imports nothing of this project. `optimum-cli export onnx` does the same with an older
torch; with ours it asks for onnxscript. The graph ends with the token embeddings, as in the files on the hub: pooling and
normalisation are infinity's.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer


class Encoder(torch.nn.Module):
    """A transformer with its inputs by position, as an ONNX graph has them."""

    def __init__(self, transformer: Any, names: list[str]) -> None:
        super().__init__()
        self.transformer = transformer
        self.names = names

    def forward(self, *features: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.transformer(**dict(zip(self.names, features, strict=True))).last_hidden_state
        return found


def export(model: str, folder: Path) -> None:
    first = SentenceTransformer(model, device="cpu", model_kwargs={"attn_implementation": "eager"})[0]
    features = first.tokenizer(["a short text", "and one that is a little longer"], padding=True, return_tensors="pt")
    names = list(features)
    # Where infinity cuts a text; for this model it would be at 512 tokens, and sentence-transformers' own modules say 256.
    first.auto_model.config.max_position_embeddings = first.max_seq_length
    folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # the newer exporter needs onnxscript
    torch.onnx.export(
        Encoder(first.auto_model, names).eval(),
        tuple(features.values()),
        str(folder / "model.onnx"),
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in [*names, "last_hidden_state"]},
        opset_version=17,
        dynamo=False,
    )
    first.auto_model.config.save_pretrained(folder)
    first.tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    export(sys.argv[1], Path(sys.argv[2]))

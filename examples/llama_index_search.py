"""Search a file's passages by meaning with LlamaIndex.

pip install llama-index-embeddings-openai-like
python examples/llama_index_search.py examples/alice.txt "a cat that vanishes little by little"

Where the service asks for a key, it is read from the environment variable API_KEY.
"""

import argparse
import os
from pathlib import Path

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

parser = argparse.ArgumentParser(description="Search a file's passages, which are divided by blank lines.")
parser.add_argument("file", type=Path)
parser.add_argument("query")
parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the API is (%(default)s)")
options = parser.parse_args()

embeddings = OpenAILikeEmbedding(
    model_name="sentence-transformers/all-MiniLM-L6-v2",
    api_base=f"{options.url}/v1",
    api_key=os.environ.get("API_KEY", "none"),
    embed_batch_size=256,  # texts in a request; 10 unless told otherwise
)
passages = [" ".join(part.split()) for part in options.file.read_text(encoding="utf-8").split("\n\n") if part.strip()]
index = VectorStoreIndex([TextNode(text=passage) for passage in passages], embed_model=embeddings)
for found in index.as_retriever(similarity_top_k=3).retrieve(options.query):
    print(f"{found.score:.3f}  {found.text}")

"""Search a file's passages by meaning with LangChain.

pip install langchain-openai numpy
python examples/langchain_search.py examples/alice.txt "a cat that vanishes little by little"

Where the service asks for a key, it is read from the environment variable API_KEY.
"""

import argparse
import os
from pathlib import Path

from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import OpenAIEmbeddings

parser = argparse.ArgumentParser(description="Search a file's passages, which are divided by blank lines.")
parser.add_argument("file", type=Path)
parser.add_argument("query")
parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the API is (%(default)s)")
parser.add_argument("--token-ids", action="store_true", help="send token ids, LangChain's default; the API needs TOKEN_ENCODING")
options = parser.parse_args()

embeddings = OpenAIEmbeddings(
    base_url=f"{options.url}/v1",
    api_key=os.environ.get("API_KEY", "none"),
    model="sentence-transformers/all-MiniLM-L6-v2",
    check_embedding_ctx_length=options.token_ids,  # False: send texts
)
passages = [" ".join(part.split()) for part in options.file.read_text(encoding="utf-8").split("\n\n") if part.strip()]
store = InMemoryVectorStore.from_texts(passages, embeddings)
for found, score in store.similarity_search_with_score(options.query, k=3):
    print(f"{score:.3f}  {found.page_content}")

"""The HTTP API. A view parses, calls `core`, answers. Nothing here imports torch or `worker`.

`python -m api` serves it; `gunicorn 'api:create_app()'` does too, with a configuration of one's own.
"""

import os

# One thread computes a map, so that it takes no CPUs from workers beside it. numpy's OpenBLAS looks at this when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from api.app import create_app

__all__ = ["create_app"]

"""The HTTP API. A view parses, calls `core`, answers. Nothing here imports torch or `worker`.

`python -m api` serves it; `gunicorn 'api:create_app()'` does too, with a configuration of one's own.
"""

from api.app import create_app

__all__ = ["create_app"]

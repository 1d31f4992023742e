"""The Celery worker: `celery -A worker worker -Q cpu`, `celery -A worker inspect …`.

Importing this package is cheap and never loads torch: the parent process imports it before it forks, and so does every
`inspect` call. The model is loaded in the child, by `worker.lifecycle`.
"""

import os
import sys

from core import tracing
from core.config import Settings
from core.errors import InvalidSetting
from core.models import Models
from core.queues import create_celery

try:
    settings = Settings.from_env()
    models = Models.of(settings)
    tracing.require(os.environ)
except InvalidSetting as error:
    sys.exit(f"vector-api: {error.message}")

app = create_celery(settings, models.queues)

from worker import control, idle, lifecycle, tasks  # noqa: E402, F401  (they register themselves with the app)

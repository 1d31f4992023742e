"""Flower, Celery's own view of the workers: `celery -A flowerconfig flower` in the folder of this file.

Celery takes `app` from here, and Flower its options.
"""

import os
import sys
from pathlib import Path

from core.config import Settings
from core.errors import InvalidSetting
from core.queues import create_celery

try:
    app = create_celery(Settings.from_env())
    password = Path(os.environ["FLOWER_PASSWORD_FILE"]).read_text(encoding="utf-8").strip()
except InvalidSetting as error:
    sys.exit(f"flower: {error.message}")
except (KeyError, OSError) as error:
    sys.exit(f"flower: FLOWER_PASSWORD_FILE has to name a readable file: {error}")
if not password:
    sys.exit("flower: FLOWER_PASSWORD_FILE is empty")

basic_auth = [f"flower:{password}"]
read_only = True
"""Flower can stop workers and send tasks. Here it looks, and `celery control` does."""
enable_events = False
"""Flower would have every worker send an event for each task. Our tasks only say that there is work; jobs are not Celery's."""

"""The service's own logger. It logs ids, counts and times, never texts."""

import logging

log = logging.getLogger("vector-api")

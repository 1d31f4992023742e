"""`vector-api keys new NAME`: a key and the line that the service's API_KEYS_FILE needs. Works without a service.

The service makes the same with `make key` (its `core/keys.py`).
"""

import hashlib
import re
import secrets

from vector_api_client.errors import BadSetting

PREFIX = "va_"
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def make_key(name: str) -> tuple[str, str]:
    """A new key for a tenant, and its line `tenant:sha256`.

    Raises:
        BadSetting: the tenant cannot have this name.
    """
    if not NAME.fullmatch(name):
        raise BadSetting(f"a name has 1 to 64 letters, digits, dots, dashes or underscores, got {len(name)} characters")
    key = PREFIX + secrets.token_urlsafe(32)
    return key, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"

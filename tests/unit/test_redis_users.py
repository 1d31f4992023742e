"""deploy/redis-users.acl lets the service do what its scripts do, and little else."""

import re

from core.config import Settings
from core.queues import broker
from tests.processes import ROOT

LINES = (ROOT / "deploy" / "redis-users.acl").read_text(encoding="utf-8").splitlines()
RULES = LINES[1].split()
SCRIPTS = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "core" / "ledger").glob("*.lua"))


def test_users_are_the_service_and_nobody_else() -> None:
    assert LINES[0] == "user default off"
    assert RULES[:2] == ["user", "vector-api"]
    assert len(LINES) == 2
    assert "-@all" in RULES
    assert not [rule for rule in RULES if rule.startswith("+@")]


def test_its_password_has_to_be_filled_in() -> None:
    assert [rule for rule in RULES if rule.startswith(("#", ">"))] == [f"#{'0' * 64}"]


def test_every_command_of_the_scripts_is_allowed() -> None:
    commands = {name.lower() for name in re.findall(r"redis\.call\((?:front and )?'([A-Z]+)'", SCRIPTS)}
    assert len(commands) > 20
    assert {f"+{name}" for name in commands} - set(RULES) == set()


def test_keys_and_channels_are_those_of_our_prefix() -> None:
    prefix = Settings().redis_prefix
    celery = broker(Settings())[1]["global_keyprefix"]
    assert [rule for rule in RULES if rule.startswith("~")] == [f"~{prefix}*"]
    # Redis compares the patterns of PSUBSCRIBE letter by letter; these are Celery's, for the database 0.
    assert {rule for rule in RULES if rule.startswith("&")} == {
        f"&{prefix}*",
        f"&{celery}/0.celery.pidbox",
        f"&{celery}/0.celeryev/*",
        f"&{celery}/0.celeryev/worker.*",
    }

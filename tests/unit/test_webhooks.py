"""Which targets a file lists, how long retries wait, and what an event says."""

import json
import time
from pathlib import Path

import openai
import orjson
import pytest

from api.webhooks import FIRST_RETRY_SECONDS, GIVE_UP_SECONDS, LONGEST_RETRY_SECONDS, event_of, retry_seconds, signed
from core.config import Settings
from core.errors import InvalidSetting
from core.ledger import WAITING, Delivery
from core.webhooks import EVENTS, Target, Targets, read
from tests.webhook_receiver import PATH, SECRET

GOOD = f'url = "https://hooks.example.com{PATH}"\nsecret = "{SECRET}"\n'


def written(tmp_path: Path, content: str) -> Path:
    file = tmp_path / "webhooks.toml"
    file.write_text(content)
    return file


def test_file_lists_targets_of_each_tenant(tmp_path: Path) -> None:
    second = GOOD.replace("/take", "/other")
    file = written(tmp_path, f'[[alice]]\n{GOOD}[[alice]]\n{second}events = ["job.failed"]\n[["bob.b"]]\n{GOOD}')
    first, other, bobs = Targets.of(Settings(webhooks_file=str(file))).all
    assert (first.tenant, first.events, other.events, bobs.tenant) == ("alice", set(EVENTS), {"job.failed"}, "bob.b")
    assert first.name.startswith("hooks.example.com#")
    assert first.name == bobs.name != other.name
    assert SECRET not in repr(first)
    assert "take" not in repr(first)


def test_only_events_that_a_tenant_wants_are_told() -> None:
    targets = Targets(
        [
            Target("alice", "https://one.example/", SECRET),
            Target("alice", "https://two.example/", SECRET, frozenset(["job.failed"])),
            Target("bob", "https://three.example/", SECRET, frozenset(["job.failed"])),
        ]
    )
    one, two, three = (target.name for target in targets.all)
    assert json.loads(targets.wanting("alice", ["job.failed", "job.succeeded"])) == {
        "job.failed": [one, two],
        "job.succeeded": [one],
    }
    assert json.loads(targets.wanting("bob", ["job.failed", "job.succeeded"])) == {"job.failed": [three]}
    assert targets.wanting("bob", ["job.succeeded"]) == targets.wanting("carol", EVENTS) == targets.wanting("alice", []) == ""


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "lists no target"),
        ("[[alice]\n", "is not valid TOML (at line 1"),
        (f"[[alice]]\nsecret = {SECRET}\n", "is not valid TOML"),
        (
            'alice = "https://hooks.example.com"\n',
            "alice outside of a table; the targets of a tenant are tables such as [[alice]]",
        ),
        (f"[alice]\n{GOOD}", "has alice outside of a table"),
        (f'[["a b"]]\n{GOOD}', "a table whose name is no tenant's"),
        (f"[[alice]]\n{GOOD}name = 1\n", "an unknown key in [[alice]]; known are url, secret, events"),
        (f"[[alice]]\n{GOOD}[[alice]]\n{GOOD}", "the URL of [[alice]] number 2 twice"),
        (f'[[alice]]\nsecret = "{SECRET}"\n', "a url in [[alice]] that is not https://host/path"),
        ("[[alice]]\n" + GOOD.replace("https://", "ftp://"), "a url in [[alice]]"),
        ("[[alice]]\n" + GOOD.replace("https://", "https://user:password@"), "a url in [[alice]]"),
        ("[[alice]]\n" + GOOD.replace('-secret"', '-secret#part"'), "a url in [[alice]]"),
        ("[[alice]]\n" + GOOD.replace(".com", ".com:99999"), "a url in [[alice]]"),
        ("[[alice]]\n" + GOOD.replace("example", "exämple"), "a url in [[alice]]"),
        ("[[alice]]\n" + GOOD.replace("https://", "http://"), "for the networks of WEBHOOK_NETWORKS, and there are none"),
        ("[[alice]]\n" + GOOD.replace("whsec_", ""), "a secret in [[alice]] that is not whsec_ and the base64 of 24 to 64 bytes"),
        ("[[alice]]\n" + GOOD.replace("whsec_c", "whsec_"), "a secret in [[alice]]"),
        (f'[[alice]]\n{GOOD}events = ["job.done"]\n', "events in [[alice]] that are not a list of some of job.succeeded"),
        (f"[[alice]]\n{GOOD}events = []\n", "events in [[alice]]"),
        (f"[[alice]]\n{GOOD}events = [1, []]\n", "events in [[alice]]"),
    ],
)
def test_file_that_cannot_be_used_names_the_place_and_no_secret(tmp_path: Path, content: str, problem: str) -> None:
    file = written(tmp_path, content)
    with pytest.raises(InvalidSetting) as found:
        read(file)
    assert problem in found.value.message
    assert str(file) in found.value.message
    assert found.value.param == "WEBHOOKS_FILE"
    assert SECRET.removeprefix("whsec_") not in found.value.message
    assert "query-secret" not in found.value.message


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"WEBHOOKS_FILE cannot be read \(No such file or directory\)"):
        read(tmp_path / "none")


def test_retries_go_on_for_three_days_and_are_spread() -> None:
    assert [retry_seconds(n, 0) for n in (1, 2, 3, 4)] == [2, 4, 8, 16]
    assert retry_seconds(1, 1) == FIRST_RETRY_SECONDS / 2
    assert retry_seconds(12, 0) == retry_seconds(10_000, 0) == LONGEST_RETRY_SECONDS
    seconds = tries = 0.0
    while seconds < GIVE_UP_SECONDS:
        tries += 1
        seconds += retry_seconds(int(tries), 0.5)
    assert 80 < tries < 160


@pytest.mark.parametrize("event", [*EVENTS, "job.of_the_future"])
def test_openai_client_unwraps_our_events(event: str) -> None:
    delivery = Delivery("job_c3e303a8/hooks.example.com#1a2b3c4d", event, WAITING, 1, 1_795_454_027.8)
    body = orjson.dumps(event_of(delivery))
    headers = signed(body, delivery.event_id, SECRET, now=time.time())
    client = openai.OpenAI(api_key="none", webhook_secret=SECRET)
    found = client.webhooks.unwrap(body, headers)
    assert (found.id, found.type, found.created_at, found.data.id) == ("evt_c3e303a8", event, 1_795_454_027, delivery.subject)
    assert found.model_dump() == json.loads(body)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body.replace(b"evt_c", b"evt_d"), headers)

"""A ledger as a file that people can read: every key with its type, value and remaining life, on its own line.

    python -m tests.ledger.dump > tests/ledger/dumps/NAME.json

records one with jobs in every state, by the code of this checkout; `restore` puts such a file into a server. Redis' own DUMP is
not used: its payloads differ between versions.
"""

import base64
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from core.jobs import JobOptions, Lane
from core.ledger import ClaimedShard, Ledger, NewJob, StoringLedger, connect
from core.result_store import ResultStore
from core.sharding import Input, Shard, cut
from launcher.redis_server import RedisServer
from tests.ledger_driver import Driver

PREFIX = "vector-api:"
NEAR_MS = 90 * 86_400_000
"""Numbers so near to the time of the recording are times."""

TENANT = "default"


def texts_of(job_id: str) -> list[str]:
    """The inputs of each recorded job."""
    return [f"{job_id} text {n}" for n in range(6)]


# Record ---------------------------------------------------------------------------------------------------------------


class Recording:
    """A ledger in which everything has happened that the old code could leave behind."""

    def __init__(self, client: redis.Redis, folder: Path) -> None:
        self.store = ResultStore(f"file://{folder}", timeout_seconds=5, retries=0)
        self.ledger = Ledger(client, PREFIX)
        self.cpu = Driver(self.ledger)
        self._storing = Driver(StoringLedger(client, PREFIX, self.store))

    def fill(self) -> None:
        """What is not to go on waiting while the next job is prepared is held, and given back in the end."""
        self._ended()
        self._cancelled()
        self._waiting_elsewhere()
        waiting = [*self._divided(), *self._released(), *self._suspects()]
        self._running()
        for shard in waiting:
            self.ledger.release("cpu", "held@test", [shard])
        self._submit("interactive", lane=Lane.INTERACTIVE)
        self._submit("queued", key="digest-of-key")
        self.ledger.stage("staged", self._shards("staged"))
        self.cpu.report(name="held@test")

    def _shards(self, job_id: str) -> list[Shard]:
        return list(cut((Input(text, f"id-{n}") for n, text in enumerate(texts_of(job_id))), max_inputs=2, max_characters=999))

    def _submit(self, job_id: str, *, queue: str = "cpu", lane: Lane = Lane.BULK, key: str = "", moves: bool = False) -> None:
        shards = self._shards(job_id)
        job = NewJob(job_id, TENANT, queue, lane, "m", JobOptions(), {}, 3600, 6, len(shards), moves, key, "body" if key else "")
        self.ledger.submit(job, shards, max_waiting_inputs=10**9)

    def _claim(self, *, most: int = 1) -> list[ClaimedShard]:
        """So many shards, each by a claim of its own."""
        return [
            shard for _ in range(most) for shard in self.ledger.claim("cpu", "held@test", lease_seconds=60, max_bytes=1).shards
        ]

    def _die(self, queue: str = "cpu", *, max_bytes: int = 1) -> None:
        """Claim, and never come back."""
        self.ledger.claim(queue, "died@test", lease_seconds=0.001, max_bytes=max_bytes)
        time.sleep(0.01)

    def _ended(self) -> None:
        for job_id, driver, failed in (
            ("done", self.cpu, [2]),
            ("all-failed", self.cpu, range(6)),
            ("stored", self._storing, ()),
        ):
            self._submit(job_id)
            driver.work_all(failed=failed)
        self._submit("deleted")
        self.cpu.work_all()
        self.ledger.remove("deleted", TENANT)

    def _cancelled(self) -> None:
        self._submit("cancelled")
        self.cpu.work(1)
        self._die()
        self._claim()
        self.ledger.remove("cancelled", TENANT)

    def _waiting_elsewhere(self) -> None:
        """A job that waits for a gpu worker but may go elsewhere, one shard under the lease of a worker that is gone."""
        self._submit("movable", queue="gpu", moves=True)
        self._die("gpu")
        self._submit("gpu-only", queue="gpu")

    def _divided(self) -> list[ClaimedShard]:
        """Two workers died with its first shard; the first of the parts that this left took one more."""
        self._submit("divided")
        self._die()
        self._die()
        self.ledger.divide("cpu", self._claim()[0])
        self._die()
        return self._claim(most=10)

    def _released(self) -> list[ClaimedShard]:
        """A shard that was given back twice, and one that was in flight when a worker died and then given back."""
        self._submit("released")
        for _ in range(2):
            self.ledger.release("cpu", "held@test", self._claim())
        self._die()
        self.ledger.release("cpu", "held@test", self._claim())
        return self._claim(most=10)

    def _suspects(self) -> list[ClaimedShard]:
        """All that its worker held when it died."""
        self._submit("suspects")
        self._die(max_bytes=10**6)
        return self._claim(most=10)

    def _running(self) -> None:
        """One shard is done, one with a worker that lives, one with a worker that died, which nobody has noticed yet."""
        self._submit("running")
        self.cpu.work(1)
        self._claim()
        self._die()


def record() -> dict[str, Any]:
    """The state of a server on which the recording was made."""
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder) / "redis") as server:
        client = connect(server.url, timeout_seconds=5, retries=0)
        recording = Recording(client, Path(folder) / "store")
        recording.fill()
        objects = {key: _shown(recording.store.get(key)) for key in recording.store.keys("stored")}
        return {"recorded_at": int(time.time() * 1000), "keys": dict(_read(client)), "objects": objects}


def _read(client: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in sorted(client.scan_iter()):
        kind = client.type(name).decode()
        value: Any
        match kind:
            case "string":
                value = _shown(client.get(name))
            case "hash":
                value = {_shown(k): _shown(v) for k, v in sorted(client.hgetall(name).items())}
            case "list":
                value = [_shown(member) for member in client.lrange(name, 0, -1)]
            case "set":
                value = sorted(_shown(member) for member in client.smembers(name))
            case "zset":
                value = {_shown(member): score for member, score in client.zrange(name, 0, -1, withscores=True)}
        life = client.pttl(name)
        yield name.decode(), {"type": kind, "value": value} | ({"expires_in_ms": life} if life > 0 else {})


def _shown(value: bytes) -> str:
    try:
        text = value.decode()
        return text if text.isprintable() else "base64:" + base64.b64encode(value).decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(value).decode()


# Restore --------------------------------------------------------------------------------------------------------------


def restore(file: Path, client: Any, store: ResultStore | None = None) -> None:
    """Put a recorded ledger into an empty server, as if it had been recorded just now."""
    dump = json.loads(file.read_text())
    recorded, now = dump["recorded_at"], int(time.time() * 1000)

    def at(number: float) -> float:
        return number - recorded + now if abs(number - recorded) < NEAR_MS else number

    def value_of(shown: str) -> bytes:
        if shown.startswith("base64:"):
            return base64.b64decode(shown.removeprefix("base64:"))
        return str(int(at(int(shown)))).encode() if shown.isdecimal() else shown.encode()

    for name, found in dump["keys"].items():
        value = found["value"]
        match found["type"]:
            case "string":
                client.set(name, value_of(value))
            case "hash":
                client.hset(name, mapping={k: value_of(v) for k, v in value.items()})
            case "list":
                client.rpush(name, *map(value_of, value))
            case "set":
                client.sadd(name, *map(value_of, value))
            case "zset":
                client.zadd(name, {member: at(score) for member, score in value.items()})
        if "expires_in_ms" in found:
            client.pexpire(name, found["expires_in_ms"])
    if store is not None:
        store.put_all({key: value_of(block) for key, block in dump["objects"].items()})


if __name__ == "__main__":
    dump = record()
    lines = [f"  {json.dumps(name)}: {json.dumps(found, ensure_ascii=False)}" for name, found in dump["keys"].items()]
    objects = json.dumps(dump["objects"])
    print(f'{{"recorded_at": {dump["recorded_at"]},\n "keys": {{\n' + ",\n".join(lines) + f'\n }},\n "objects": {objects}}}')

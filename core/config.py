"""Settings: every environment variable the service reads, in one place."""

import importlib.util
import ipaddress
import math
import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from core.errors import InvalidSetting
from core.sentinel import SentinelUrl

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def _setting(default: Any, parse: Callable[[str], Any], *, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"parse": parse, "secret": secret})


def _text(raw: str) -> str:
    return raw


def _optional(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda raw: parse(raw) if raw else None


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        if raw not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return raw

    return parse


def _switch(raw: str) -> bool:
    if raw.lower() not in ("1", "0", "true", "false", "yes", "no", "on", "off"):
        raise ValueError("must be 1 or 0")
    return raw.lower() in ("1", "true", "yes", "on")


def _networks(raw: str) -> tuple[str, ...]:
    try:
        return tuple(str(ipaddress.ip_network(part.strip())) for part in raw.split(","))
    except ValueError:
        raise ValueError("must be networks such as 10.0.0.0/8,fd00::/8") from None


def _device(raw: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", raw):
        raise ValueError("must be one of auto, cpu, cuda, cuda:N, mps")
    return raw


def _redis_url(raw: str) -> str:
    try:
        if SentinelUrl.parse(raw):
            return raw
        parts = urlsplit(raw)
        usable = parts.port is None or parts.port > 0
    except ValueError:
        usable = False
    if (
        not usable
        or parts.scheme not in ("redis", "rediss", "unix")
        or not (parts.path if parts.scheme == "unix" else parts.netloc)
    ):
        raise ValueError(
            "must be redis://host:port/0, rediss://host:port/0, unix:///path.sock?db=0 or redis+sentinel://host:port,…/master/0"
        )
    if {"username", "password"} & dict(parse_qsl(parts.query)).keys() or (parts.scheme == "unix" and "@" in parts.netloc):
        # Celery would show it: it hides what stands before the host, and nothing else.
        raise ValueError(
            "may have user and password before the host of redis:// and rediss:// only, as in redis://user:password@host"
        )
    return raw


def _result_store(raw: str) -> str:
    if raw == "redis":
        return raw
    try:
        parts = urlsplit(raw)
        place = parts.path.strip("/") if parts.scheme == "file" and not parts.netloc else parts.scheme == "s3" and parts.netloc
        usable = bool(place) and "@" not in parts.netloc and ":" not in parts.netloc and not (parts.query or parts.fragment)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must be redis, file:///folder or s3://bucket/prefix, without credentials")
    if importlib.util.find_spec("obstore") is None:
        raise ValueError("needs the package obstore: pip install -r requirements-store.txt")
    return raw.rstrip("/")


def _with_password(url: str, file: Path) -> str:
    """The URL with the password in the file, which may end with a line end. Errors never show either."""
    try:
        password = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "not UTF-8"
        raise ValueError(f"cannot be read ({reason})") from None
    if not password:
        raise ValueError("is empty")
    parts = urlsplit(url)
    if parts.scheme == "unix":
        raise ValueError("needs a REDIS_URL of redis://, rediss:// or redis+sentinel://")
    if parts.password is not None:
        raise ValueError("is set, but REDIS_URL has a password already")
    user, _, place = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user}:{quote(password, safe='')}@{place}").geturl()


def _with_ca(url: str, file: Path) -> str:
    """The URL with the file of the certificate authority, as redis-py takes it."""
    parts = urlsplit(url)
    if parts.scheme != "rediss":
        raise ValueError("needs a REDIS_URL of rediss://")
    options = dict(parse_qsl(parts.query))
    if "ssl_ca_certs" in options:
        raise ValueError("is set, but REDIS_URL has ssl_ca_certs already")
    try:
        ssl.create_default_context(cafile=file)
    except OSError as error:  # ssl.SSLError is one
        reason = "no certificate in PEM" if isinstance(error, ssl.SSLError) else os.strerror(error.errno or 0)
        raise ValueError(f"cannot be read ({reason})") from None
    return parts._replace(query=urlencode(options | {"ssl_ca_certs": str(file)})).geturl()


def _whole(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    return lambda raw: _within(raw, int, "a whole number", minimum, maximum)


def _number(minimum: float, maximum: float | None = None) -> Callable[[str], float]:
    return lambda raw: _within(raw, float, "a number", minimum, maximum)


def _within(raw: str, kind: Callable[[str], Any], what: str, minimum: float, maximum: float | None) -> Any:
    limits = f"{what} of at least {minimum}" if maximum is None else f"{what} from {minimum} to {maximum}"
    try:
        value = kind(raw)
    except ValueError:
        raise ValueError(f"must be {limits}") from None
    if not (math.isfinite(value) and minimum <= value and (maximum is None or value <= maximum)):
        raise ValueError(f"must be {limits}")
    return value


@dataclass(frozen=True)
class Settings:
    """The service's configuration. Each field is read from the environment variable of its name in capitals."""

    redis_url: str = _setting("redis://127.0.0.1:6379/0", _redis_url, secret=True)
    """Redis or Valkey, 6.2 or newer: `redis://`, `rediss://` (TLS), `unix:///path.sock?db=0`, `redis+sentinel://host,host/master/0`."""
    redis_password_file: str | None = _setting(None, _optional(_text))
    """File that holds the password for a `REDIS_URL` without one, which then shows in no list of variables."""
    redis_ca_file: str | None = _setting(None, _optional(_text))
    """Certificates (PEM) that may sign the one of a `rediss://` server; empty takes the system's. It is always verified."""
    redis_prefix: str = _setting("vector-api:", _text)
    """Start of every key, so that one server can be shared."""

    api_host: str = _setting("127.0.0.1", _text)
    """Address the API listens on. One that others can reach needs `API_KEYS_FILE`."""
    api_port: int = _setting(8000, _whole(1, 65535))
    """Port the API listens on."""
    api_threads: int = _setting(64, _whole(1, 1024))
    """Requests answered at the same time; half of them may wait for their jobs, a quarter may be streams of events."""
    embeddings_wait_seconds: float = _setting(55.0, _number(0.1, 3600))
    """How long a `POST /v1/embeddings` waits for its vectors; proxies often cut a request at 60 s."""
    token_encoding: str | None = _setting(None, _optional(_text))
    """Encoding of the token ids that clients may send to `/v1/embeddings`, such as `cl100k_base`. Empty: texts only."""
    api_keys_file: str | None = _setting(None, _optional(_text))
    """File of the API keys, a line `tenant:sha256` each (`make key NAME=alice`). Empty: nobody is asked for a key."""
    allow_anonymous: bool = _setting(False, _switch)
    """Whether an API without keys may listen on an address that others can reach."""

    webhooks_file: str | None = _setting(None, _optional(_text))
    """TOML file of the addresses that are told when jobs end, by tenant (docs/webhooks.md). Empty: nobody is told."""
    webhook_networks: tuple[str, ...] | None = _setting(None, _optional(_networks))
    """Private networks that webhooks may reach, such as `10.0.0.0/8,fd00::/8`, also without TLS. Empty: public addresses only."""

    model_name: str = _setting(DEFAULT_MODEL, _text)
    """A model of the hub or a local folder, loadable by sentence-transformers."""
    model_revision: str | None = _setting(None, _optional(_text))
    """Branch, tag or commit of the model on the hub; empty takes the newest."""
    models_file: str | None = _setting(None, _optional(_text))
    """TOML file that lists further models, each with an alias and queues of its own (docs/models.md). Empty: one model."""
    device: str = _setting("auto", _device)
    """`auto` takes cuda, then mps, then cpu."""
    engine: str = _setting("auto", _one_of("auto", "torch", "openvino"))
    """What computes on a cpu. `auto` takes OpenVINO when it is installed and the model converts, else torch."""
    dtype: str = _setting("auto", _one_of("auto", "float32", "float16", "bfloat16", "int8"))
    """`auto` is float16 on cuda, bfloat16 on a cpu that has it (OpenVINO only), else float32. `int8` needs OpenVINO and nncf."""
    parity: bool = _setting(True, _switch)
    """Whether to measure the engine against float32 torch at start."""
    parity_floor: float = _setting(0.999, _number(-1, 1))
    """A worker whose worst cosine is below this does not start."""
    cache_dir: str = _setting("~/.cache/vector-api", _text)
    """Folder of converted models."""
    unpadded: bool = _setting(False, _switch)
    """On cuda, in half precision: texts of a batch in one row instead of padded; for BERT, RoBERTa and XLM-RoBERTa."""
    batch_size: int | None = _setting(None, _optional(_whole(1)))
    """Texts of full length in a batch; empty is 32 on cuda and 8 elsewhere. Token budget = this × the model's maximum length."""
    empty_cache_tokens: int = _setting(16_384, _whole(1))
    """A batch of at least so many tokens, padding included, is followed by `empty_cache()` on cuda and mps."""
    torch_threads: int | None = _setting(None, _optional(_whole(1)))
    """Threads of one forward pass on a CPU; empty takes the CPUs this process may use."""

    gpu_share: float = _setting(1.0, _number(0, 1))
    """Share of the `auto` jobs that go to the gpu queue while a gpu worker lives."""
    gpu_idle_exit_seconds: float | None = _setting(None, _optional(_number(1)))
    """A worker of the gpu queue ends, with exit code 0, when its queues were empty that long; empty is never."""

    max_inputs: int = _setting(10_000, _whole(1))
    """Inputs in one JSON request; larger jobs are sent as NDJSON."""
    max_stream_inputs: int = _setting(10_000_000, _whole(1))
    """Inputs in one NDJSON request."""
    max_input_characters: int = _setting(200_000, _whole(1))
    """Characters of one input."""
    max_body_bytes: int = _setting(8 * 2**20, _whole(1024))
    """Bytes of one JSON request."""
    max_stream_bytes: int = _setting(8 * 2**30, _whole(1024))
    """Bytes of one NDJSON request."""
    max_waiting_inputs: int = _setting(20_000_000, _whole(1))
    """Inputs that may wait in all queues together; above it the API answers 429."""
    max_waiting_bytes: int | None = _setting(None, _optional(_whole(1024)))
    """Bytes of inputs that Redis may hold until their vectors are stored; above it the API answers 429. Empty: no limit."""
    max_tenant_jobs: int | None = _setting(None, _optional(_whole(1)))
    """Jobs of one tenant that are queued or running; above it 429. Empty: no limit."""
    max_tenant_inputs: int | None = _setting(None, _optional(_whole(1)))
    """Inputs of one tenant that wait or are being embedded; above it 429. Empty: no limit."""
    max_tenant_requests_per_minute: int | None = _setting(None, _optional(_whole(1)))
    """Requests of one tenant; above it 429. Empty: no limit, and no write to Redis for it."""
    max_tenant_inputs_per_minute: int | None = _setting(None, _optional(_whole(1)))
    """Inputs one tenant may submit; above it 429. A larger job is taken when nothing was sent for a while. Empty: no limit."""
    max_file_bytes: int = _setting(200 * 2**20, _whole(1024))
    """Bytes of one file for a batch."""
    max_files_bytes: int = _setting(512 * 2**20, _whole(1024))
    """Bytes of all files that were sent and are kept, and 4 KiB for each; they lie in Redis. Above it the API answers 429."""
    max_tenant_files_bytes: int | None = _setting(None, _optional(_whole(1024)))
    """The same for the files of one tenant. Empty: no limit of its own."""
    max_batch_inputs: int = _setting(50_000, _whole(1))
    """Lines, and inputs, of one batch."""
    file_ttl_seconds: int = _setting(86_400, _whole(1))
    """How long a file that was sent is kept, unless it says so itself."""
    max_ttl_seconds: int = _setting(30 * 86_400, _whole(1))
    """Longest result lifetime a client may ask for."""
    result_ttl_seconds: int = _setting(86_400, _whole(1))
    """How long an ended job and its result are kept."""

    result_store: str = _setting("redis", _result_store, secret=True)
    """Where vectors are kept: `redis`, `file:///folder` (one that API and workers share) or `s3://bucket/prefix`."""
    result_store_min_bytes: int = _setting(16_384, _whole(0))
    """Results of shards that are smaller stay in Redis all the same: there they cost less than a request."""
    cache_bytes: int = _setting(0, _whole(0))
    """Memory of Redis for vectors of texts that come again, which are then not computed again (docs/cache.md). 0: no cache."""

    shard_inputs: int = _setting(256, _whole(1, 4096))
    """Most inputs in a shard: the unit of retry, and the grain in which results become readable."""
    shard_characters: int = _setting(262_144, _whole(1))
    """Most characters in a shard; keeps Redis values near 1 MB."""
    lease_seconds: float = _setting(15.0, _number(0.5))
    """How long a silent worker keeps its shards before others take them. Renewed at a third of it."""
    max_attempts: int = _setting(3, _whole(1))
    """Deaths of workers that had the text alone, after which it fails."""
    hang_seconds: float = _setting(300.0, _number(1))
    """How long one call of the model may take before its process is ended: well above the longest batch. Not for loading."""
    drain_seconds: float = _setting(10.0, _number(0.1))
    """How long one Celery task keeps claiming before it sends itself again."""
    batch_seconds: float = _setting(0.05, _number(0.001))
    """How long a batch should take on its device; interactive work waits for one batch of bulk work at most."""
    linger_seconds: float = _setting(1.0, _number(0, 10))
    """How long a worker that ran out of work listens for more before it waits for a Celery message."""
    wake_seconds: float = _setting(1.0, _number(0.1))
    """How often each worker looks for work that nobody was told of."""
    heartbeat_seconds: float = _setting(5.0, _number(0.1))
    """How often a worker reports itself; it counts as gone after three times as long."""
    alive_file: str | None = _setting(None, _optional(_text))
    """File that a worker touches as often, while its two processes live, for health checks of containers."""
    log_level: str = _setting("INFO", _one_of("DEBUG", "INFO", "WARNING", "ERROR"))
    """Least important messages that are logged."""
    log_format: str = _setting("auto", _one_of("auto", "json", "text"))
    """`json`: an object a line (docs/observability.md); `text`: for people; `auto`: text on a terminal, else JSON."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Settings from environment variables.

        Raises:
            InvalidSetting: a value is not allowed; the message names the variable, what is allowed and what was found.
        """
        values = {}
        for item in fields(cls):
            variable = item.name.upper()
            raw = environ.get(variable, "").strip()
            if not raw:
                continue
            try:
                values[item.name] = item.metadata["parse"](raw)
            except ValueError as error:
                shown = "" if item.metadata["secret"] else f", got {raw!r}"
                raise InvalidSetting(f"{variable} {error}{shown}", param=variable) from None
        for name, complete in (("redis_password_file", _with_password), ("redis_ca_file", _with_ca)):
            if path := values.get(name):
                try:
                    values["redis_url"] = complete(values.get("redis_url", cls.redis_url), Path(path))
                except ValueError as error:
                    raise InvalidSetting(f"{name.upper()} {error}, got {path!r}", param=name.upper()) from None
        return cls(**values)

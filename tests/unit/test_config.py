import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import redis

import core.config
from core.config import Settings
from core.errors import InvalidSetting

DEFAULTS = Settings()


def test_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_env({}) == DEFAULTS
    assert DEFAULTS.redis_url == "redis://127.0.0.1:6379/0"
    assert (DEFAULTS.api_host, DEFAULTS.device, DEFAULTS.gpu_share) == ("127.0.0.1", "auto", 1.0)
    assert (DEFAULTS.model_name, DEFAULTS.model_revision) == ("sentence-transformers/all-MiniLM-L6-v2", None)
    assert (DEFAULTS.result_ttl_seconds, DEFAULTS.max_attempts, DEFAULTS.batch_size) == (86_400, 3, None)


@pytest.mark.parametrize("name", [item.name for item in fields(Settings)])
def test_blank_value_counts_as_none(name: str) -> None:
    assert Settings.from_env({name.upper(): "  "}) == DEFAULTS


@pytest.mark.parametrize("name", [item.name for item in fields(Settings)])
def test_default_written_out_is_accepted_and_means_the_same(name: str) -> None:
    value = getattr(DEFAULTS, name)
    assert Settings.from_env({name.upper(): "" if value is None else f" {value} "}) == DEFAULTS


@pytest.mark.parametrize(
    ("variable", "raw", "value"),
    [
        ("REDIS_URL", "unix:///tmp/r.sock?db=3", "unix:///tmp/r.sock?db=3"),
        ("REDIS_URL", "redis+sentinel://one:26379,two/texts/3", "redis+sentinel://one:26379,two/texts/3"),
        ("API_PORT", "65535", 65535),
        ("DEVICE", "cuda:1", "cuda:1"),
        ("DEVICE", "mps", "mps"),
        ("DTYPE", "bfloat16", "bfloat16"),
        ("BATCH_SIZE", "64", 64),
        ("GPU_SHARE", "0", 0.0),
        ("GPU_SHARE", "0.25", 0.25),
        ("SHARD_INPUTS", "1", 1),
        ("LEASE_SECONDS", "0.5", 0.5),
        ("MODEL_REVISION", "main", "main"),
        ("LOG_LEVEL", "DEBUG", "DEBUG"),
        ("RESULT_STORE", "file:///srv/vectors/", "file:///srv/vectors"),
        ("RESULT_STORE", "s3://bucket", "s3://bucket"),
        ("RESULT_STORE", "s3://bucket/a/prefix", "s3://bucket/a/prefix"),
    ],
)
def test_value_of_the_environment_is_taken(variable: str, raw: str, value: object) -> None:
    assert getattr(Settings.from_env({variable: raw}), variable.lower()) == value


@pytest.mark.parametrize(
    ("variable", "raw", "allowed"),
    [
        ("API_PORT", "0", "a whole number from 1 to 65535"),
        ("API_PORT", "65536", "a whole number from 1 to 65535"),
        ("API_PORT", "http", "a whole number from 1 to 65535"),
        ("API_PORT", "80.5", "a whole number from 1 to 65535"),
        ("API_THREADS", "-1", "a whole number from 1 to 1024"),
        ("DEVICE", "tpu", "one of auto, cpu, cuda, cuda:N, mps"),
        ("DEVICE", "cuda:x", "one of auto, cpu, cuda, cuda:N, mps"),
        ("DEVICE", "CPU", "one of auto, cpu, cuda, cuda:N, mps"),
        ("DTYPE", "float64", "one of auto, float32, float16, bfloat16, int8"),
        ("ENGINE", "onnx", "one of auto, torch, openvino"),
        ("BATCH_SIZE", "0", "a whole number of at least 1"),
        ("BATCH_SIZE", "none", "a whole number of at least 1"),
        ("GPU_SHARE", "1.01", "a number from 0 to 1"),
        ("GPU_SHARE", "-0.1", "a number from 0 to 1"),
        ("GPU_SHARE", "nan", "a number from 0 to 1"),
        ("GPU_SHARE", "half", "a number from 0 to 1"),
        ("SHARD_INPUTS", "4097", "a whole number from 1 to 4096"),
        ("LEASE_SECONDS", "0.4", "a number of at least 0.5"),
        ("LEASE_SECONDS", "nan", "a number of at least 0.5"),
        ("LEASE_SECONDS", "inf", "a number of at least 0.5"),
        ("WAKE_SECONDS", "0", "a number of at least 0.1"),
        ("RESULT_TTL_SECONDS", "1e3", "a whole number of at least 1"),
        ("LOG_LEVEL", "debug", "one of DEBUG, INFO, WARNING, ERROR"),
    ],
)
def test_bad_value_names_the_variable_what_is_allowed_and_what_was_found(variable: str, raw: str, allowed: str) -> None:
    with pytest.raises(InvalidSetting, match=f"^{variable} must be {re.escape(allowed)}, got '{re.escape(raw)}'$") as caught:
        Settings.from_env({variable: raw})
    assert caught.value.param == variable


@pytest.mark.parametrize("item", [item for item in fields(Settings) if item.type not in ("str", str)], ids=lambda item: item.name)
def test_every_setting_that_is_not_a_text_refuses_a_text(item: object) -> None:
    variable = item.name.upper()  # type: ignore[attr-defined]
    if variable in ("MODEL_REVISION", "MODELS_FILE", "ALIVE_FILE", "API_KEYS_FILE", "WEBHOOKS_FILE", "TOKEN_ENCODING"):
        return
    with pytest.raises(InvalidSetting, match=variable):
        Settings.from_env({variable: "some text"})


def test_other_variables_are_ignored() -> None:
    assert Settings.from_env({"PATH": "/bin", "api_port": "1", "VECTOR_API": "x"}) == DEFAULTS


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        DEFAULTS.api_port = 1  # type: ignore[misc]


def test_every_setting_says_what_it_is() -> None:
    source = Path(core.config.__file__).read_text()
    for item in fields(Settings):
        assert re.search(rf'^    {item.name}: .*\n    """', source, re.MULTILINE), f"{item.name} has no line that explains it"


@pytest.mark.parametrize(
    ("url", "content", "joined"),
    [
        ("redis://redis:6379/0", "secret\n", "redis://:secret@redis:6379/0"),
        ("rediss://redis/1", "secret", "rediss://:secret@redis/1"),
        ("redis://user@redis:6379/0", "secret\r\n", "redis://user:secret@redis:6379/0"),
        ("redis://[::1]:6379/0", "a/b@c:d#é ", "redis://:a%2Fb%40c%3Ad%23%C3%A9%20@[::1]:6379/0"),
        ("", "secret", "redis://:secret@127.0.0.1:6379/0"),
    ],
)
def test_password_of_a_file_becomes_part_of_the_url(url: str, content: str, joined: str, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(content.encode())
    found = Settings.from_env({"REDIS_URL": url, "REDIS_PASSWORD_FILE": str(file)})
    assert found.redis_url == joined
    assert redis.Redis.from_url(joined).connection_pool.connection_kwargs["password"] == content.rstrip("\r\n")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("rediss://redis/0", r"cannot be read \(No such file or directory\)"),
        ("rediss://redis/0", r"cannot be read \(no certificate in PEM\)"),
        ("redis://redis/0", "needs a REDIS_URL of rediss://"),
        ("unix:///tmp/r.sock?db=0", "needs a REDIS_URL of rediss://"),
        ("rediss://redis/0?ssl_ca_certs=other.pem", "is set, but REDIS_URL has ssl_ca_certs already"),
    ],
)
def test_ca_file_that_cannot_be_used_is_named(url: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    if "no certificate" in problem:
        file.write_text("nonsense")
    with pytest.raises(InvalidSetting, match=f"^REDIS_CA_FILE {problem}, got '{re.escape(str(file))}'$"):
        Settings.from_env({"REDIS_URL": url, "REDIS_CA_FILE": str(file)})


@pytest.mark.parametrize(
    "url",
    [
        "redis://redis/0?password=hidden",
        "redis://redis/0?username=user&password=hidden",
        "unix://:hidden@/tmp/r.sock?db=0",
        "unix:///tmp/r.sock?db=0&password=hidden",
    ],
)
def test_password_is_only_taken_where_celery_hides_it(url: str) -> None:
    with pytest.raises(InvalidSetting, match=r"^REDIS_URL may have user and password before the host") as caught:
        Settings.from_env({"REDIS_URL": url})
    assert "hidden" not in str(caught.value)


def test_no_setting_shows_its_password() -> None:
    assert "hidden" not in repr(Settings.from_env({"REDIS_URL": "redis://:hidden@redis:6379/0"}))


@pytest.mark.parametrize(
    ("url", "content", "problem"),
    [
        ("redis://redis:6379/0", None, r"cannot be read \(No such file or directory\)"),
        ("redis://redis:6379/0", b"\xff\xfe", r"cannot be read \(not UTF-8\)"),
        ("redis://redis:6379/0", b"\n", "is empty"),
        ("redis://:hidden@redis:6379/0", b"hidden", "is set, but REDIS_URL has a password already"),
        ("unix:///tmp/r.sock?db=0", b"hidden", r"needs a REDIS_URL of redis://, rediss:// or redis\+sentinel://"),
    ],
)
def test_password_file_that_cannot_be_used_is_named_and_never_shown(
    url: str, content: bytes | None, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidSetting, match=f"^REDIS_PASSWORD_FILE {problem}, got '{re.escape(str(file))}'$") as caught:
        Settings.from_env({"REDIS_URL": url, "REDIS_PASSWORD_FILE": str(file)})
    assert "hidden" not in str(caught.value)


def test_result_store_without_its_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidSetting, match="RESULT_STORE needs the package obstore"):
        Settings.from_env({"RESULT_STORE": "s3://bucket"})
    assert Settings.from_env({"RESULT_STORE": "redis"}) == DEFAULTS


@pytest.mark.parametrize(
    "raw",
    [
        *("/srv/vectors", "file://srv/vectors", "file:///", "s3://", "s3:///prefix", "s3://bucket?region=x"),
        *("gs://bucket", "http://host/bucket", "s3://key:secret@bucket"),
    ],
)
def test_bad_result_store_is_refused_and_not_shown(raw: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        Settings.from_env({"RESULT_STORE": raw})
    assert caught.value.param == "RESULT_STORE"
    assert "must be redis, file:///folder or s3://bucket/prefix" in caught.value.message
    assert raw not in caught.value.message.replace("file:///folder", "").replace("s3://bucket/prefix", "")

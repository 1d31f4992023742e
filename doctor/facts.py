"""What the checks judge. Everything is plain data; None means that it could not be found out."""

from dataclasses import dataclass

Version = tuple[int, ...]


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU, as the driver shows it or as torch does."""

    name: str
    capability: Version | None
    total_bytes: int | None
    free_bytes: int | None


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver of the machine; in a container only what was passed into it can be seen."""

    version: str | None = None
    """`580.82.07`, or None without a driver."""
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class Torch:
    version: str
    cuda: str | None
    """`13.0` of a CUDA build, None of a CPU build."""
    gpus: tuple[Gpu, ...]
    mps: bool
    usable_cpus: int
    """CPUs this process may use: its affinity, cut to the container's quota."""
    openvino: str | None


@dataclass(frozen=True)
class Model:
    """A model that is to be served, as far as its files are here."""

    name: str
    place: str | None
    """`folder`, `cache`, or the package that has a copy; None where it is not here."""
    cache: str
    """The hub's cache folder."""
    cache_writable: bool
    hub: bool
    """The hub answers."""
    offline: bool
    """HF_HUB_OFFLINE is set: the hub was not asked."""
    weights_bytes: int | None = None
    """As they are stored."""
    stored_bytes: int = 4
    """Bytes of one stored weight."""
    hidden: int | None = None
    intermediate: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Libraries:
    """What the worker computes with. In the image of the API alone there are none: `installed` is False."""

    installed: bool
    torch: Torch | None = None
    model: Model | None = None
    """That of MODEL_NAME."""
    others: tuple[Model, ...] = ()
    """Those that MODELS_FILE adds. Not every machine needs each of them."""
    error: str | None = None


@dataclass(frozen=True)
class RedisServer:
    place: str
    """Its URL without user and password."""
    named: bool = True
    """REDIS_URL is set; otherwise this is only the default."""
    error: str | None = None
    version: str | None = None
    policy: str | None = None
    append_only: bool | None = None
    append_failed: bool = False
    used_bytes: int = 0
    limit_bytes: int = 0
    """0: no limit."""
    skew_seconds: float = 0.0
    """This machine's clock minus the server's."""


@dataclass(frozen=True)
class Store:
    """The result store of RESULT_STORE, when that is not Redis."""

    place: str
    error: str | None = None


@dataclass(frozen=True)
class Machine:
    architecture: str
    """`x86_64`, `aarch64`, `arm64`."""
    cpu_features: frozenset[str] | None
    cpus: int
    in_container: bool
    docker: bool
    container_toolkit: bool
    """Docker's way to NVIDIA GPUs is installed."""

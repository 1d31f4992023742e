"""Judge the facts. Pure functions; each returns findings, most important first.

Sources of the limits: NVIDIA's table of CUDA minor version compatibility (drivers), and the list of architectures in torch's
wheels (compute capabilities). CUDA 13 dropped Maxwell, Pascal and Volta; the cu126 wheels know no Blackwell.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from core.config import Settings
from core.errors import InvalidSetting
from core.keys import Keys
from core.models import Models
from doctor.facts import Driver, Gpu, Libraries, Machine, Model, RedisServer, Store, Torch, Version

DRIVERS = {12: 525, 13: 580}
"""Oldest driver for a CUDA major version."""
FULL_DRIVERS: dict[Version, int] = {(12, 6): 560, (12, 8): 570, (12, 9): 575}
"""Oldest driver that offers everything of a CUDA version; an older one of the same major version runs it with less."""
CAPABILITIES: tuple[tuple[Version, Version, Version], ...] = (
    ((13, 0), (7, 5), (99, 0)),
    ((12, 8), (7, 0), (99, 0)),
    ((12, 0), (5, 0), (9, 0)),
)
"""From a CUDA version on: oldest and newest compute capability that torch's wheels are built for."""
CU126 = "TORCH_INDEX_URL=https://download.pytorch.org/whl/cu126"

OLDEST_REDIS = (6, 2)
CLOCK_SECONDS = 1.0
"""Times that clients see come from Redis; beyond this they do not fit those in the logs."""

CONTEXT_BYTES = 700 * 2**20
"""What CUDA, cuBLAS and torch take before there is a model."""
GIB = 2**30


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


_seriousness: Callable[[Level], int] = list(Level).index


@dataclass(frozen=True)
class Finding:
    level: Level
    subject: str
    message: str
    advice: str = ""
    """What to do; empty where nothing is to be done."""


def ok(subject: str, message: str) -> Finding:
    return Finding(Level.OK, subject, message)


def warning(subject: str, message: str, advice: str) -> Finding:
    return Finding(Level.WARNING, subject, message, advice)


def failure(subject: str, message: str, advice: str) -> Finding:
    return Finding(Level.FAILURE, subject, message, advice)


def check_libraries(found: Libraries) -> list[Finding]:
    """Whether torch and what is around it load."""
    if not found.installed:
        return [ok("torch", "not installed: this is an installation of the API alone")]
    if found.error or found.torch is None:
        advice = "reinstall with `make setup`, or rebuild the image"
        return [failure("torch", f"the libraries do not load: {found.error or 'no answer'}", advice)]
    build = f"a build for CUDA {found.torch.cuda}" if found.torch.cuda else "a CPU build"
    openvino = f"; OpenVINO {found.torch.openvino}" if found.torch.openvino else ""
    return [ok("torch", f"torch {found.torch.version} loads, {build}{openvino}")]


def check_driver(driver: Driver, torch: Torch, device: str) -> list[Finding]:
    """The driver against the CUDA version that torch was built for."""
    wanted = device.startswith("cuda")
    if driver.version is None:
        if wanted:
            advice = (
                "on the host, install an NVIDIA driver, 580 or newer; start a container with the GPU "
                "(docker-compose.gpu.yml, or `docker run --gpus all`) and with the NVIDIA container toolkit on the host"
            )
            return [failure("driver", f"DEVICE={device}, but there is no NVIDIA driver here", advice)]
        return [ok("driver", "no NVIDIA driver here: no NVIDIA GPU can be used")]
    if torch.cuda is None:
        advice = "install requirements-gpu.txt without the CPU index, or build the image with --build-arg BASE_IMAGE=gpu-base"
        message = f"NVIDIA driver {driver.version} is here, but torch is a CPU build"
        return [failure("driver", message, advice) if wanted else warning("driver", message, f"to use the GPU, {advice}")]
    if device in ("cpu", "mps"):
        return [ok("driver", f"NVIDIA driver {driver.version}, not used with DEVICE={device}")]
    cuda = _version(torch.cuda)
    number = _version(driver.version)[0]
    least, full = DRIVERS.get(cuda[0], max(DRIVERS.values())), FULL_DRIVERS.get(cuda[:2], 0)
    if number < least:
        older = f", or take torch for CUDA 12.6, which runs from driver 525 ({CU126})" if cuda[0] >= 13 and number >= 525 else ""
        message = f"NVIDIA driver {driver.version} is too old for torch's CUDA {torch.cuda}, which needs {least} or newer"
        return [failure("driver", message, f"update the driver to {least} or newer{older}")]
    if number < full:
        message = f"NVIDIA driver {driver.version} runs CUDA {torch.cuda} by minor-version compatibility only"
        return [warning("driver", message, f"should CUDA refuse something, update the driver to {full} or newer")]
    return [ok("driver", f"NVIDIA driver {driver.version}, CUDA {torch.cuda} needs {least} or newer")]


def check_gpus(driver: Driver, torch: Torch, device: str) -> list[Finding]:
    """Whether torch sees the GPUs that the driver shows, and was built for them."""
    if device in ("cpu", "mps"):
        return _check_mps(torch, device)
    if torch.cuda is None or driver.version is None:
        return _check_mps(torch, device) if device == "auto" else []
    if not torch.gpus:
        seen = ", ".join(gpu.name for gpu in driver.gpus) or "no GPU"
        advice = "look at CUDA_VISIBLE_DEVICES and NVIDIA_VISIBLE_DEVICES, and at what `nvidia-smi` says"
        message = f"the driver shows {seen}, torch sees none"
        return [failure("gpu", message, advice) if device != "auto" else warning("gpu", f"{message}: the CPU is used", advice)]
    index = int(device.partition(":")[2] or 0)
    if index >= len(torch.gpus):
        return [
            failure("gpu", f"DEVICE={device}, but torch sees {len(torch.gpus)} GPUs", f"use cuda:0 to cuda:{len(torch.gpus) - 1}")
        ]
    return [_judge_capability(torch.gpus[index], torch.cuda, f"cuda:{index}")]


def _judge_capability(gpu: Gpu, cuda: str, device: str) -> Finding:
    if gpu.capability is None:
        return ok("gpu", f"{device} is {gpu.name}")
    oldest, newest = next((limits for since, *limits in CAPABILITIES if _version(cuda) >= since), ((0,), (99, 0)))
    shown = ".".join(map(str, gpu.capability))
    if gpu.capability < oldest:
        message = f"{device} is {gpu.name} of compute capability {shown}; torch for CUDA {cuda} needs {_dotted(oldest)} or newer"
        return failure("gpu", message, f"take torch for CUDA 12.6: {CU126}" if gpu.capability >= (5, 0) else "use DEVICE=cpu")
    if gpu.capability[0] > newest[0]:
        message = f"{device} is {gpu.name} of compute capability {shown}, which torch for CUDA {cuda} does not know"
        return failure("gpu", message, "take torch from the default index: leave TORCH_INDEX_URL empty")
    return ok("gpu", f"torch sees {device}, {gpu.name}, compute capability {shown}")


def _check_mps(torch: Torch, device: str) -> list[Finding]:
    if device == "mps" and not torch.mps:
        return [failure("gpu", "DEVICE=mps, but torch sees no Metal GPU", "use DEVICE=cpu, or macOS on Apple silicon")]
    if torch.mps and device in ("auto", "mps"):
        return [ok("gpu", "torch sees mps, the GPU of this Mac")]
    return [ok("gpu", "none in use; torch computes on the CPU")]


def gpu_need_bytes(model: Model, dtype: str, batch_texts: int) -> int | None:
    """Device memory that a worker needs, estimated from the model's configuration; None without one.

    CUDA's own share, the weights in `dtype`, and a batch at its token budget: in one layer the widest tensors (twice the
    feed-forward's, eight of the hidden size) live at the same time. Twice that, as torch keeps freed blocks.
    """
    if model.weights_bytes is None or not model.hidden:
        return None
    number_bytes = {"float32": 4}.get(dtype, 2)
    weights = model.weights_bytes // model.stored_bytes * number_bytes
    tokens = batch_texts * (model.max_tokens or 512)
    activations = tokens * (2 * (model.intermediate or 4 * model.hidden) + 8 * model.hidden) * number_bytes
    return CONTEXT_BYTES + weights + 2 * activations


def check_gpu_memory(torch: Torch, model: Model | None, settings: Settings) -> list[Finding]:
    """The GPU's free memory against what the model is expected to need."""
    if not torch.gpus or settings.device in ("cpu", "mps"):
        return []
    index = int(settings.device.partition(":")[2] or 0)
    if index >= len(torch.gpus) or torch.gpus[index].free_bytes is None:
        return []
    gpu = torch.gpus[index]
    free = gpu.free_bytes or 0
    need = None if model is None else gpu_need_bytes(model, settings.dtype, settings.batch_size or 32)
    if need is None:
        return [ok("gpu memory", f"{_gib(free)} GiB free; the model is not here yet, so its need is unknown")]
    message = f"{_gib(free)} of {_gib(gpu.total_bytes or free)} GiB free, the model needs about {_gib(need)} GiB"
    if free < need:
        advice = "stop what else uses the GPU (`nvidia-smi` lists it; a running worker counts, too), or lower BATCH_SIZE"
        return [warning("gpu memory", message, advice)]
    return [ok("gpu memory", message)]


def check_containers(machine: Machine, driver: Driver) -> list[Finding]:
    """Whether Docker on this machine can hand on its GPU."""
    if machine.in_container or not machine.docker or driver.version is None:
        return []
    if not machine.container_toolkit:
        advice = "install the NVIDIA container toolkit, run `nvidia-ctk runtime configure --runtime=docker`, restart Docker"
        return [warning("containers", "Docker is here, but nothing that gives containers the GPU", advice)]
    return [ok("containers", "Docker and the NVIDIA container toolkit are installed")]


def check_redis(server: RedisServer) -> list[Finding]:
    """Whether Redis answers and keeps what it is given."""
    if server.error is not None:
        message = f"no answer at {server.place}: {server.error}"
        if not server.named:
            return [warning("redis", message, "set REDIS_URL to your server; `make run` and `make demo` start one of their own")]
        advice = "start it, or correct REDIS_URL (and REDIS_PASSWORD_FILE, where it wants a password)"
        return [failure("redis", message, advice)]
    findings = []
    if server.version is not None and _version(server.version)[:2] < OLDEST_REDIS:
        findings.append(failure("redis", f"version {server.version} is too old", "install Redis or Valkey, 6.2 or newer"))
    if server.policy is None:
        advice = "make sure that maxmemory-policy is noeviction"
        findings.append(warning("redis", "the server does not tell its maxmemory-policy", advice))
    elif server.policy != "noeviction":
        message = f"maxmemory-policy is {server.policy}: when memory is short, Redis deletes jobs and results"
        findings.append(failure("redis", message, "CONFIG SET maxmemory-policy noeviction, and the same in its configuration"))
    if server.append_failed:
        findings.append(failure("redis", "its last write to the append-only file failed", "look at its log and its disk"))
    if server.append_only is None:
        findings.append(warning("redis", "the server does not tell about its append-only file", "make sure that it persists"))
    elif not server.append_only:
        message = "appendonly is off: a restart of Redis forgets accepted jobs"
        findings.append(warning("redis", message, "CONFIG SET appendonly yes, and the same in its configuration"))
    if server.limit_bytes and server.used_bytes > 0.8 * server.limit_bytes:
        message = f"{_gib(server.used_bytes)} of its {_gib(server.limit_bytes)} GiB are in use; when full it refuses new jobs"
        findings.append(warning("redis", message, "raise maxmemory, or lower RESULT_TTL_SECONDS"))
    if not findings:
        limit = f"{_gib(server.limit_bytes)} GiB at most" if server.limit_bytes else "no memory limit"
        findings.append(ok("redis", f"version {server.version} answers at {server.place}: noeviction, append-only file, {limit}"))
    return findings


def check_keys(found: Keys | InvalidSetting | None) -> list[Finding]:
    """Whether the file of the API keys can be used; None: API_KEYS_FILE is not set."""
    if found is None:
        return []
    if isinstance(found, InvalidSetting):
        return [failure("keys", found.message, "correct the file; `make key NAME=alice` adds a line to it")]
    if not found:
        return [failure("keys", "API_KEYS_FILE holds no key", "make one: make key NAME=alice")]
    return [ok("keys", f"API_KEYS_FILE holds {len(found)} keys")]


def check_models(found: Models | InvalidSetting | None) -> list[Finding]:
    """Whether the list of models can be used; None: MODELS_FILE is not set."""
    if found is None:
        return []
    if isinstance(found, InvalidSetting):
        return [failure("models", found.message, "correct the file; docs/models.md shows one")]
    return [ok("models", f"MODELS_FILE lists {', '.join(str(model) for model in found.all if model.alias)}")]


def check_store(store: Store | None) -> list[Finding]:
    """Whether the result store can be written and read."""
    if store is None:
        return []
    if store.error is not None:
        advice = (
            "correct RESULT_STORE, its permissions, and for S3 the variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
            "AWS_REGION and, beyond AWS, AWS_ENDPOINT_URL"
        )
        return [failure("results", store.error, advice)]
    return [ok("results", f"{store.place} can be written and read")]


def check_clock(server: RedisServer) -> list[Finding]:
    """This machine's clock against that of Redis, whose time every job carries."""
    if server.error is not None:
        return []
    skew = server.skew_seconds
    if abs(skew) > CLOCK_SECONDS:
        message = f"this clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} that of Redis"
        return [warning("clock", message, "let both keep time by NTP; work is not at risk, but logs and job times do not agree")]
    return [ok("clock", f"agrees with that of Redis within {max(0.1, abs(skew)):.1f} s")]


def check_cpu(machine: Machine) -> list[Finding]:
    """What the CPU can do for a forward pass."""
    features = machine.cpu_features
    if features is None:
        return [ok("cpu", f"{machine.architecture}; its features cannot be told here")]
    if machine.architecture not in ("x86_64", "AMD64"):
        return [ok("cpu", f"{machine.architecture}{', with bfloat16' if 'bf16' in features else ''}")]
    if "amx_bf16" in features:
        return [ok("cpu", "AMX and bfloat16: the fastest that a CPU can do")]
    if "avx512_bf16" in features:
        return [ok("cpu", "AVX512-BF16: OpenVINO computes in bfloat16")]
    if "avx512f" in features or "avx2" in features:
        best = "AVX512" if "avx512f" in features else "AVX2"
        return [ok("cpu", f"{best} without bfloat16: computes in float32; a CPU with AVX512-BF16 or AMX would be faster")]
    return [
        warning("cpu", "no AVX2: embedding will be very slow", "use another machine, or a CPU type that hides less of its host")
    ]


def check_threads(machine: Machine, torch: Torch, settings: Settings) -> list[Finding]:
    """Threads of a forward pass against the CPUs this process may use."""
    wanted, usable = settings.torch_threads or torch.usable_cpus, torch.usable_cpus
    of = f" of the machine's {machine.cpus}" if usable < machine.cpus else ""
    message = f"{wanted} threads on the {usable} CPUs{of} that this process may use"
    if wanted > usable:
        return [
            warning("threads", message, f"lower TORCH_THREADS to {usable}, or leave it empty: threads that wait slow others down")
        ]
    return [ok("threads", message)]


def check_model(model: Model) -> list[Finding]:
    """Whether a worker will get its model."""
    if model.place == "folder":
        return [ok("model", f"{model.name} is a folder here")]
    if model.place == "cache":
        hub = "" if model.hub else "; the hub is not asked" if model.offline else "; the hub is out of reach, and not needed"
        return [ok("model", f"{model.name} is in the cache {model.cache}{hub}")]
    if model.hub and model.cache_writable:
        return [ok("model", f"{model.name} is not in the cache {model.cache} yet; the hub answers, the first start downloads it")]
    if model.hub:
        advice = "make it writable for the service's user (10001 in the containers), or set HF_HOME to another folder"
        return [failure("model", f"{model.name} has to be downloaded, but {model.cache} cannot be written", advice)]
    reason = "HF_HUB_OFFLINE is set" if model.offline else "the hub is out of reach"
    if model.place is not None:
        return [ok("model", f"{reason}; the copy of {model.name} in the package {model.place} is taken")]
    advice = "name a local folder instead, mount a filled cache at HF_HOME, or build the image's target `baked`"
    return [failure("model", f"{model.name} is not in the cache {model.cache}, and {reason}", advice)]


def check_all(
    settings: Settings,
    libraries: Libraries,
    driver: Driver,
    server: RedisServer,
    machine: Machine,
    keys: Keys | InvalidSetting | None = None,
    store: Store | None = None,
    models: Models | InvalidSetting | None = None,
) -> list[Finding]:
    """Every finding, in the order in which a person would look."""
    findings = check_libraries(libraries)
    torch, model = libraries.torch, libraries.model
    if torch is not None:
        findings += check_driver(driver, torch, settings.device)
        findings += check_gpus(driver, torch, settings.device)
        findings += check_gpu_memory(torch, model, settings)
    findings += check_containers(machine, driver)
    findings += check_redis(server)
    findings += check_store(store)
    findings += check_clock(server)
    findings += check_keys(keys)
    findings += check_cpu(machine)
    if torch is not None:
        findings += check_threads(machine, torch, settings)
    findings += check_models(models)
    if model is not None:
        findings += check_model(model)
    for other in libraries.others:
        findings += [replace(found, level=min(found.level, Level.WARNING, key=_seriousness)) for found in check_model(other)]
    return findings


def worst(findings: list[Finding]) -> Level:
    """The most serious level; `ok` of no findings."""
    return max((finding.level for finding in findings), key=_seriousness, default=Level.OK)


def _version(text: str) -> Version:
    """`13.0.1-rc2` as (13, 0, 1); (0,) of what is no version."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else (0,)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _gib(number: int) -> str:
    return f"{number / GIB:.1f}"

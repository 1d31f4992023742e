"""What the doctor says of machines that nobody here has."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.config import Settings
from core.models import Model as ServedModel
from core.models import Models
from doctor.__main__ import line
from doctor.checks import (
    Finding,
    Level,
    check_all,
    check_clock,
    check_containers,
    check_cpu,
    check_driver,
    check_gpu_memory,
    check_gpus,
    check_libraries,
    check_model,
    check_models,
    check_redis,
    check_store,
    check_threads,
    failure,
    gpu_need_bytes,
    ok,
    warning,
    worst,
)
from doctor.facts import Driver, Gpu, Libraries, Machine, Model, RedisServer, Store, Torch
from doctor.probes import parse_kernel_driver, parse_libraries, parse_smi, probe_models, probe_store

OK, WARNING, FAILURE = Level.OK, Level.WARNING, Level.FAILURE
GIB = 2**30

H100 = Gpu("NVIDIA H100", (9, 0), 80 * GIB, 79 * GIB)
T4 = Gpu("Tesla T4", (7, 5), 15 * GIB, 14 * GIB)
P100 = Gpu("Tesla P100", (6, 0), 16 * GIB, 16 * GIB)
K80 = Gpu("Tesla K80", (3, 7), 12 * GIB, 12 * GIB)
B200 = Gpu("NVIDIA B200", (10, 0), 180 * GIB, 180 * GIB)

CPU_TORCH = Torch("2.13.0+cpu", None, (), mps=False, usable_cpus=4, openvino="2026.4.1")
CUDA_TORCH = Torch("2.13.0+cu130", "13.0", (H100,), mps=False, usable_cpus=4, openvino=None)
CU126_TORCH = replace(CUDA_TORCH, version="2.13.0+cu126", cuda="12.6")
DRIVER = Driver("580.82.07", (H100,))
SERVER = RedisServer("redis://redis:6379/0", version="8.1.8", policy="noeviction", append_only=True, limit_bytes=2 * GIB)
MACHINE = Machine("x86_64", frozenset({"avx2", "avx512f", "avx512_bf16"}), 8, False, False, False)
MODEL = Model(
    "org/model",
    "cache",
    "/models/hub",
    True,
    True,
    False,
    weights_bytes=90 * 2**20,
    hidden=384,
    intermediate=1536,
    max_tokens=256,
)


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


@pytest.mark.parametrize(
    ("version", "torch", "device", "level", "words"),
    [
        ("580.82.07", CUDA_TORCH, "cuda", OK, "needs 580"),
        ("580", CUDA_TORCH, "auto", OK, "needs 580"),
        ("595.10", CUDA_TORCH, "cuda:0", OK, "needs 580"),
        ("579.99", CUDA_TORCH, "cuda", FAILURE, "too old"),
        ("570.1", CUDA_TORCH, "auto", FAILURE, "cu126"),
        ("470.256.02", CUDA_TORCH, "cuda", FAILURE, "580 or newer"),
        ("525.60.13", CU126_TORCH, "cuda", WARNING, "560"),
        ("559.0", CU126_TORCH, "cuda", WARNING, "560"),
        ("560.35.03", CU126_TORCH, "cuda", OK, "needs 525"),
        ("580.82.07", CU126_TORCH, "cuda", OK, "needs 525"),
        ("524.0", CU126_TORCH, "cuda", FAILURE, "525"),
        ("470.1", CUDA_TORCH, "cpu", OK, "not used"),
        ("580.1", CPU_TORCH, "cuda", FAILURE, "BASE_IMAGE=gpu-base"),
        ("580.1", CPU_TORCH, "auto", WARNING, "requirements-gpu.txt"),
        (None, CUDA_TORCH, "cuda", FAILURE, "container toolkit"),
        (None, CUDA_TORCH, "auto", OK, "no NVIDIA driver"),
        (None, CPU_TORCH, "cpu", OK, "no NVIDIA driver"),
    ],
)
def test_driver_is_held_against_what_torch_needs(
    version: str | None, torch: Torch, device: str, level: Level, words: str
) -> None:
    found = only(check_driver(Driver(version), torch, device))
    assert (found.level, found.subject) == (level, "driver")
    assert words in found.message + found.advice
    assert bool(found.advice) == (level is not OK)


def test_driver_too_old_for_cuda_12_is_not_sent_to_it() -> None:
    assert "cu126" not in only(check_driver(Driver("470.1"), CUDA_TORCH, "cuda")).advice


@pytest.mark.parametrize(
    ("gpus", "torch", "device", "level", "words"),
    [
        ((H100,), CUDA_TORCH, "cuda", OK, "cuda:0, NVIDIA H100, compute capability 9.0"),
        ((T4,), CUDA_TORCH, "cuda", OK, "7.5"),
        ((P100,), CUDA_TORCH, "cuda", FAILURE, "cu126"),
        ((P100,), CU126_TORCH, "cuda", OK, "6.0"),
        ((K80,), CU126_TORCH, "auto", FAILURE, "DEVICE=cpu"),
        ((B200,), CUDA_TORCH, "cuda", OK, "10.0"),
        ((B200,), CU126_TORCH, "cuda", FAILURE, "TORCH_INDEX_URL empty"),
        ((H100, P100), CUDA_TORCH, "cuda:1", FAILURE, "cuda:1 is Tesla P100"),
        ((H100,), CUDA_TORCH, "cuda:2", FAILURE, "torch sees 1"),
        ((), CUDA_TORCH, "cuda", FAILURE, "CUDA_VISIBLE_DEVICES"),
        ((), CUDA_TORCH, "auto", WARNING, "the CPU is used"),
        ((), CPU_TORCH, "auto", OK, "on the CPU"),
        ((), CPU_TORCH, "cpu", OK, "on the CPU"),
        ((), CPU_TORCH, "mps", FAILURE, "no Metal GPU"),
        ((), replace(CPU_TORCH, mps=True), "auto", OK, "mps"),
    ],
)
def test_gpus_are_seen_by_torch_and_neither_too_old_nor_too_new(
    gpus: tuple[Gpu, ...], torch: Torch, device: str, level: Level, words: str
) -> None:
    found = only(check_gpus(DRIVER, replace(torch, gpus=gpus), device))
    assert (found.level, found.subject) == (level, "gpu")
    assert words in found.message + found.advice


def test_gpu_memory_is_held_against_the_need_of_the_model() -> None:
    need = gpu_need_bytes(MODEL, "auto", 32)
    assert need is not None
    assert 0.7 * GIB < need < 1.2 * GIB
    small = replace(CUDA_TORCH, gpus=(replace(T4, free_bytes=need - 1),))
    assert only(check_gpu_memory(small, MODEL, Settings())).level is WARNING
    enough = replace(CUDA_TORCH, gpus=(replace(T4, free_bytes=need),))
    assert only(check_gpu_memory(enough, MODEL, Settings())).level is OK
    assert only(check_gpu_memory(enough, MODEL, Settings(batch_size=4096))).level is WARNING
    assert only(check_gpu_memory(enough, replace(MODEL, weights_bytes=None), Settings())).level is OK
    assert check_gpu_memory(enough, MODEL, Settings(device="cpu")) == []


def test_need_grows_with_weights_tokens_and_the_size_of_a_number() -> None:
    need = [
        gpu_need_bytes(model, dtype, texts) or 0
        for model, dtype, texts in [
            (MODEL, "float16", 8),
            (MODEL, "float16", 32),
            (MODEL, "float32", 32),
            (replace(MODEL, weights_bytes=2 * GIB), "float32", 32),
        ]
    ]
    assert need == sorted(set(need))
    stored_half = replace(MODEL, weights_bytes=45 * 2**20, stored_bytes=2)
    assert gpu_need_bytes(stored_half, "float16", 32) == gpu_need_bytes(MODEL, "float16", 32)


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, OK, "noeviction"),
        ({"limit_bytes": 0}, OK, "no memory limit"),
        ({"error": "Connection refused"}, FAILURE, "REDIS_URL"),
        ({"error": "Authentication required"}, FAILURE, "REDIS_PASSWORD_FILE"),
        ({"error": "Connection refused", "named": False}, WARNING, "make run"),
        ({"version": "6.0.16"}, FAILURE, "too old"),
        ({"version": "6.2.0"}, OK, "6.2.0"),
        ({"version": "10.0.1"}, OK, "10.0.1"),
        ({"policy": "allkeys-lru"}, FAILURE, "deletes jobs"),
        ({"policy": None}, WARNING, "noeviction"),
        ({"append_only": False}, WARNING, "appendonly yes"),
        ({"append_only": None}, WARNING, "persists"),
        ({"append_failed": True}, FAILURE, "disk"),
        ({"used_bytes": 1.7 * GIB}, WARNING, "1.7 of its 2.0 GiB"),
        ({"used_bytes": 1.5 * GIB}, OK, "2.0 GiB at most"),
    ],
)
def test_redis_answers_is_new_enough_and_forgets_nothing(changes: dict[str, object], level: Level, words: str) -> None:
    found = only(check_redis(replace(SERVER, **changes)))  # type: ignore[arg-type]
    assert (found.level, found.subject) == (level, "redis")
    assert words in found.message + found.advice


def test_result_store_can_be_written_or_says_why_not(tmp_path: Path) -> None:
    assert check_store(probe_store(Settings())) == []
    good = check_store(probe_store(Settings(result_store=f"file://{tmp_path}/results")))
    assert only(good).level is OK
    bad = only(check_store(probe_store(Settings(result_store="file:///proc/nowhere"))))
    assert bad.level is FAILURE
    assert "file:///proc/nowhere" in bad.message
    assert "RESULT_STORE" in bad.advice
    shown = check_all(Settings(), Libraries(installed=False), Driver(), SERVER, MACHINE, store=Store("s3://bucket", "it refuses"))
    assert worst(shown) is FAILURE


def test_redis_with_several_faults_gets_a_line_for_each() -> None:
    findings = check_redis(replace(SERVER, policy="volatile-ttl", append_only=False))
    assert [finding.level for finding in findings] == [FAILURE, WARNING]


@pytest.mark.parametrize(
    ("skew", "level", "words"),
    [(0.0, OK, "0.1 s"), (0.9, OK, "0.9 s"), (1.1, WARNING, "ahead of"), (-90.0, WARNING, "90.0 s behind")],
)
def test_clock_is_held_against_that_of_redis(skew: float, level: Level, words: str) -> None:
    found = only(check_clock(replace(SERVER, skew_seconds=skew)))
    assert found.level is level
    assert words in found.message


@pytest.mark.parametrize(
    ("architecture", "features", "level", "words"),
    [
        ("x86_64", {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}, OK, "AMX"),
        ("x86_64", {"avx2", "avx512f", "avx512_bf16"}, OK, "AVX512-BF16"),
        ("x86_64", {"avx2", "avx512f"}, OK, "AVX512 without bfloat16"),
        ("x86_64", {"avx2"}, OK, "AVX2 without"),
        ("x86_64", {"sse4_2"}, WARNING, "slow"),
        ("aarch64", {"asimd", "bf16"}, OK, "with bfloat16"),
        ("aarch64", {"asimd"}, OK, "aarch64"),
        ("arm64", None, OK, "cannot be told"),
    ],
)
def test_cpu_features(architecture: str, features: set[str] | None, level: Level, words: str) -> None:
    known = None if features is None else frozenset(features)
    found = only(check_cpu(replace(MACHINE, architecture=architecture, cpu_features=known)))
    assert found.level is level
    assert words in found.message


@pytest.mark.parametrize(
    ("wanted", "level", "words"),
    [(None, OK, "4 threads on the 4 CPUs of the machine's 8"), (2, OK, "2 threads"), (8, WARNING, "lower TORCH_THREADS to 4")],
)
def test_threads_fit_the_quota(wanted: int | None, level: Level, words: str) -> None:
    found = only(check_threads(MACHINE, CPU_TORCH, Settings(torch_threads=wanted)))
    assert found.level is level
    assert words in found.message + found.advice


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, OK, "in the cache"),
        ({"hub": False}, OK, "not needed"),
        ({"hub": False, "offline": True}, OK, "not asked"),
        ({"place": "folder", "hub": False}, OK, "folder"),
        ({"place": None}, OK, "downloads it"),
        ({"place": None, "cache_writable": False}, FAILURE, "10001"),
        ({"place": None, "hub": False}, FAILURE, "baked"),
        ({"place": None, "hub": False, "offline": True}, FAILURE, "HF_HUB_OFFLINE is set"),
        ({"place": "some_package", "hub": False}, OK, "some_package"),
        ({"place": "some_package"}, OK, "downloads it"),
    ],
)
def test_model_is_here_or_can_be_had(changes: dict[str, object], level: Level, words: str) -> None:
    found = only(check_model(replace(MODEL, **changes)))  # type: ignore[arg-type]
    assert found.level is level
    assert words in found.message + found.advice


@pytest.mark.parametrize(
    ("machine", "driver", "levels"),
    [
        (replace(MACHINE, docker=True), DRIVER, [WARNING]),
        (replace(MACHINE, docker=True, container_toolkit=True), DRIVER, [OK]),
        (replace(MACHINE, docker=True), Driver(), []),
        (replace(MACHINE, docker=True, in_container=True), DRIVER, []),
        (MACHINE, DRIVER, []),
    ],
)
def test_docker_can_hand_on_the_gpu(machine: Machine, driver: Driver, levels: list[Level]) -> None:
    assert [finding.level for finding in check_containers(machine, driver)] == levels


def test_installation_of_the_api_alone_is_not_at_fault() -> None:
    findings = check_all(Settings(), Libraries(installed=False), Driver(), SERVER, MACHINE)
    assert worst(findings) is OK
    assert [finding.subject for finding in findings] == ["torch", "redis", "clock", "cpu"]


def test_libraries_that_do_not_load_are_a_failure_and_the_rest_is_still_checked() -> None:
    broken = Libraries(installed=True, error="ImportError: libcudart.so.13: cannot open shared object file")
    findings = check_all(Settings(), broken, Driver(), SERVER, MACHINE)
    assert findings[0].level is FAILURE
    assert "libcudart" in findings[0].message
    assert "redis" in [finding.subject for finding in findings]


def test_healthy_gpu_server_passes_in_the_order_a_person_would_look() -> None:
    libraries = Libraries(installed=True, torch=CUDA_TORCH, model=MODEL)
    machine = replace(MACHINE, docker=True, container_toolkit=True)
    findings = check_all(Settings(device="cuda"), libraries, DRIVER, SERVER, machine)
    assert worst(findings) is OK
    assert [finding.subject for finding in findings] == [
        *("torch", "driver", "gpu", "gpu memory", "containers", "redis", "clock", "cpu", "threads", "model")
    ]


def test_worst_is_the_most_serious() -> None:
    assert worst([]) is OK
    assert worst([ok("a", ""), warning("b", "", "x")]) is WARNING
    assert worst([failure("a", "", "x"), warning("b", "", "x"), ok("c", "")]) is FAILURE


def test_finding_is_one_line_and_its_advice_another() -> None:
    assert line(ok("redis", "answers")) == "ok       redis       answers"
    assert line(warning("redis", "is far", "move it")) == "warning  redis       is far\n                     to do: move it"
    assert "\x1b[31m" in line(failure("redis", "is away", "start it"), colours=True)


def test_answer_of_nvidia_smi_becomes_a_driver() -> None:
    shown = "580.82.07, NVIDIA H100 80GB HBM3, 9.0, 81559, 81007\n580.82.07, Tesla P100, 6.0, 16384, [N/A]\n"
    driver = parse_smi(shown)
    assert driver is not None
    assert driver.version == "580.82.07"
    assert driver.gpus == (
        Gpu("NVIDIA H100 80GB HBM3", (9, 0), 81559 * 2**20, 81007 * 2**20),
        Gpu("Tesla P100", (6, 0), 16384 * 2**20, None),
    )
    assert parse_smi("") is None
    assert parse_smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.") is None


@pytest.mark.parametrize(
    ("shown", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  Tue Aug 26 17:42:00 UTC 2025\nGCC version: 12.2.0",
            "580.82.07",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57.08  Release Build\n", "575.57.08"),
        ("", None),
        ("something else 1.2", None),
    ],
)
def test_kernel_names_its_driver(shown: str, version: str | None) -> None:
    assert parse_kernel_driver(shown) == version


def test_answer_of_the_library_probe_becomes_facts() -> None:
    torch = {**vars(CUDA_TORCH), "gpus": [vars(H100)]}
    other = replace(MODEL, name="org/other")
    shown = json.dumps({"torch": torch, "model": vars(MODEL), "others": [vars(other)]})
    assert parse_libraries(shown) == Libraries(True, CUDA_TORCH, MODEL, (other,))


def test_further_models_are_looked_for_and_may_be_missing_here() -> None:
    models = Models(ServedModel("org/model", default=True), [ServedModel("org/other", "other")])
    missing = replace(MODEL, name="org/other", place=None, hub=False)
    libraries = Libraries(True, CPU_TORCH, MODEL, (missing,))
    listed, first, second = check_all(Settings(), libraries, Driver(), SERVER, MACHINE, models=models)[-3:]
    assert (listed.level, listed.message) == (OK, "MODELS_FILE lists other (org/other)")
    assert (first.level, second.level) == (OK, WARNING)
    assert "org/other is not in the cache" in second.message


def test_list_of_models_that_cannot_be_used_is_a_failure(tmp_path: Path) -> None:
    found = probe_models(Settings(models_file=str(tmp_path / "none.toml")))
    finding = only(check_models(found))
    assert finding.level is FAILURE
    assert "MODELS_FILE cannot be read" in finding.message
    assert check_models(probe_models(Settings())) == []


def test_check_libraries_tells_the_build() -> None:
    assert "CUDA 13.0" in only(check_libraries(Libraries(True, CUDA_TORCH))).message
    assert "CPU build; OpenVINO" in only(check_libraries(Libraries(True, CPU_TORCH))).message

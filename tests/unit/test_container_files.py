"""Dockerfile and compose files say what they are meant to. `make test-containers` builds and runs them."""

import importlib.metadata
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.config import Settings
from core.keys import Keys, Owner, digest_of
from core.models import Models
from tests.processes import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = [
    line.strip() for line in re.sub(r"\\\n", " ", DOCKERFILE).splitlines() if line.strip() and not line.lstrip().startswith("#")
]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
COMPOSE_GPU = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
VARIABLES: dict[str, str] = dict(
    re.findall(
        r"(?<!\$)\$\{([A-Z_]+):-([^}]*)\}",
        (ROOT / "docker-compose.yml").read_text() + (ROOT / "docker-compose.gpu.yml").read_text(),
    )
)
"""Variables of `docker compose` and their defaults."""
SETTINGS = {item.name.upper() for item in fields(Settings)}


def stages() -> dict[str, str]:
    """Each stage of the Dockerfile and what it is made from, in order."""
    words = [line.split() for line in INSTRUCTIONS if line.startswith("FROM")]
    assert all(len(line) == 4 and line[2] == "AS" for line in words)
    return {name: base for _, base, _, name in words}


def stage(name: str) -> list[str]:
    """The instructions of a stage."""
    start = next(n for n, line in enumerate(INSTRUCTIONS) if re.fullmatch(rf"FROM \S+ AS {name}", line))
    ends = [n for n, line in enumerate(INSTRUCTIONS) if line.startswith("FROM") and n > start]
    return INSTRUCTIONS[start + 1 : ends[0] if ends else None]


def test_base_image_is_declared_where_the_first_from_can_see_it() -> None:
    assert DOCKERFILE.startswith("ARG BASE_IMAGE=cpu-base\n")
    before = INSTRUCTIONS[: next(n for n, line in enumerate(INSTRUCTIONS) if line.startswith("FROM"))]
    declared = {line.removeprefix("ARG ").partition("=")[0] for line in before}
    assert set(re.findall(r"\$\{(\w+)\}", " ".join(stages().values()))) <= declared


def test_both_variants_come_from_the_same_python() -> None:
    found = stages()
    assert found["cpu-base"] == found["gpu-base"] == found["api"]
    assert found[found["cpu-base"]] == "${PYTHON_IMAGE}"
    assert "nvidia/cuda" not in " ".join(found.values())


def test_what_is_built_without_a_target_is_the_chosen_variant() -> None:
    name, chain = list(stages())[-1], []
    while name in stages():
        chain.append(name)
        name = stages()[name]
    assert chain[0] == "final"
    assert name == "${BASE_IMAGE}"


@pytest.mark.parametrize("name", ["runtime", "baked", "api", "flower"])
def test_images_run_as_a_user_without_rights(name: str) -> None:
    assert [line for line in stage(name) if line.startswith("USER")][-1] == "USER 10001:10001"


def test_dockerfile_fetches_no_frontend_and_has_no_health_check_to_inherit() -> None:
    assert not re.search(r"^#\s*syntax", DOCKERFILE, re.MULTILINE | re.IGNORECASE)
    assert not [line for line in INSTRUCTIONS if line.startswith("HEALTHCHECK")]


def test_build_sees_what_is_copied_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    let_in = [line[1:] for line in lines if line.startswith("!")]
    copied = {part for line in INSTRUCTIONS if line.startswith("COPY ") and "--from" not in line for part in line.split()[1:-1]}
    assert {source for source in copied if not any(fnmatch(source, pattern) for pattern in let_in)} == set()
    assert {pattern for pattern in let_in if not any(fnmatch(source, pattern) for source in copied)} == set()
    assert all((ROOT / source).exists() for source in copied)


def test_each_list_of_requirements_contains_the_smaller_one() -> None:
    def content(name: str) -> list[str]:
        return (ROOT / name).read_text().splitlines()

    assert "-r requirements-api.txt" in content("requirements-base.txt")
    assert "-r requirements-base.txt" in content("requirements.txt")
    assert "-r requirements-base.txt" in content("requirements-gpu.txt")
    assert "-r requirements-api.txt" in content("requirements-flower.txt")


def test_api_starts_with_its_own_list_alone() -> None:
    allowed, todo = set(), [line for line in (ROOT / "requirements-api.txt").read_text().splitlines() if "==" in line]
    while todo:
        name = normal(todo.pop())
        if name not in allowed and installed(name):
            allowed.add(name)
            todo += [need for need in importlib.metadata.requires(name) or [] if "extra ==" not in need]
    owners = importlib.metadata.packages_distributions()
    hidden = {module for module, names in owners.items() if not {normal(name) for name in names} & allowed}
    assert {"torch", "transformers"} <= hidden
    script = f"""
import sys
class Hidden:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden)
import api, api.server, doctor.__main__
api.create_app()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def normal(requirement: str) -> str:
    """The name in a requirement, as package indexes compare it."""
    found = re.match(r"[\w.-]+", requirement)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_gpu_file_stands_alone_and_adds_a_worker_for_the_gpu_queue() -> None:
    assert COMPOSE_GPU["include"] == ["docker-compose.yml"]
    assert COMPOSE_GPU["name"] == COMPOSE["name"]
    (worker,) = COMPOSE_GPU["services"].values()
    assert worker["extends"] == {"file": "docker-compose.yml", "service": "worker"}
    assert worker["build"]["args"]["BASE_IMAGE"] == "gpu-base"
    assert worker["image"] == "vector-api:gpu"
    assert worker["command"][worker["command"].index("-Q") + 1] == "gpu"
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert "runtime" not in worker  # needs another set-up of the host than a reservation


def test_redis_is_not_published_and_the_api_on_the_loopback_address_only() -> None:
    assert "ports" not in SERVICES["redis"]
    assert SERVICES["redis"]["networks"] == ["backend"]
    assert COMPOSE["networks"]["backend"]["internal"] is True
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_passwords_are_files_that_no_commit_holds(tmp_path: Path) -> None:
    shutil.copy(ROOT / "deploy" / "make-secrets.sh", tmp_path)
    subprocess.run(["sh", tmp_path / "make-secrets.sh"], check=True, capture_output=True)
    made = {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}
    assert {name: secret["file"] for name, secret in COMPOSE["secrets"].items()} == {
        name: f"./deploy/secrets/{name}" for name in made
    }
    keys = tmp_path / "secrets" / "api_keys"
    assert Keys.read(keys).owner_of(made.pop("prometheus_key")) == Owner("prometheus", watches=True)
    assert made.pop("api_keys").startswith("# A line tenant:sha256 for each API key")
    assert made.pop("webhooks").startswith("# A table [[tenant]]")
    assert len(set(made.values())) == len(made)
    assert all(re.fullmatch("[0-9a-f]{64}", password) for password in made.values())
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    for service in SERVICES.values():
        of_redis = service is SERVICES["redis"] or "REDIS_PASSWORD_FILE" in service.get("environment", {})
        assert ("redis_password" in service["secrets"]) == of_redis
    assert "@" not in COMPOSE["x-environment"]["REDIS_URL"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened_checked_and_limited(name: str) -> None:
    service = SERVICES[name]
    assert (service["init"], service["read_only"], service["cap_drop"]) == (True, True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["healthcheck"]["test"]
    assert {"memory", "pids"} <= set(service["deploy"]["resources"]["limits"])
    assert service["tmpfs"]
    assert service["stop_grace_period"]
    assert service["image"].startswith(("vector-api:", "${REDIS_IMAGE:-")) or re.search(r":v?\d+\.\d+\.\d+$", service["image"])


@pytest.mark.parametrize("name", ["api", "worker", "flower"])
def test_services_wait_for_redis(name: str) -> None:
    assert SERVICES[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_what_only_shows_things_starts_on_demand() -> None:
    assert {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service} == {
        "flower": ["flower"],
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
    }


def test_redis_keeps_what_it_is_given() -> None:
    command = SERVICES["redis"]["command"][-1]
    assert "--maxmemory-policy noeviction" in command
    assert "--appendonly yes" in command
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]


def test_services_and_env_files_name_settings_that_exist() -> None:
    named = {name for service in ("api", "worker") for name in SERVICES[service]["environment"]}
    for file in ("cpu.env", "gpu.env"):
        given = variables_of(file)
        Settings.from_env(given)
        named |= set(given)
    assert {name for name in named - SETTINGS if not name.startswith("OTEL_")} == {"HF_HUB_OFFLINE"}
    in_image = re.findall(r"\b([A-Z_]+)=", " ".join(line for line in stage("runtime") if line.startswith("ENV")))
    assert set(in_image) - SETTINGS == {"HOME", "HF_HOME"}


def variables_of(name: str) -> dict[str, str]:
    """What an env file in `deploy` sets."""
    lines = (ROOT / "deploy" / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize(
    ("name", "compose_file"), [("development.env", "docker-compose.yml"), ("production.env", "docker-compose.gpu.yml")]
)
def test_env_files_of_docker_compose_name_variables_that_it_uses(name: str, compose_file: str) -> None:
    given = variables_of(name)
    assert given.pop("COMPOSE_FILE") == compose_file
    assert given
    assert set(given) <= set(VARIABLES)
    Settings.from_env({name: value for name, value in given.items() if name in SETTINGS})


def test_deployment_page_tells_every_variable_of_the_compose_files_and_its_default() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([A-Z_]+)` \| (?:`([^`]*)`)? ?\| .*\|$", page, re.MULTILINE))
    assert told == VARIABLES


def headings_of(page: str) -> set[str]:
    """Anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


PAGES = sorted((ROOT / "docs").glob("*.md"))
LINKS = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_pages_lead_somewhere(page: Path) -> None:
    for path, _, anchor in [link.partition("#") for owner, link in LINKS if owner == page and not link.startswith("https://")]:
        file = page.parent / path if path else page
        assert file.exists(), path
        assert not anchor or anchor in headings_of(file.read_text(encoding="utf-8")), anchor


def block_of(page: str, language: str) -> str:
    """The first block in this language of a page in docs."""
    found = re.search(rf"^```{language}\n(.+?)^```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_example_of_several_models_starts_a_worker_for_a_listed_one(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(block_of("models.md", "toml"))
    models = Models.of(Settings(models_file=str(file)))
    compose = yaml.safe_load(block_of("models.md", "yaml"))
    added = {name: service for name, service in compose["services"].items() if name not in SERVICES}
    assert [service["extends"] for service in added.values()] == [{"file": "docker-compose.yml", "service": "worker"}]
    for service in compose["services"].values():
        (config,) = service["configs"]
        assert service["environment"] == {"MODELS_FILE": config["target"]}
        assert compose["configs"][config["source"]] == {"file": file.name}
    for service in added.values():
        queues = service["command"][service["command"].index("-Q") + 1].split(",")
        assert not models.of_worker(queues).default
    assert {"api", "worker"} <= set(compose["services"])


def test_secrets_script_makes_what_compose_mounts_and_leaves_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "deploy" / "make-secrets.sh", tmp_path / "deploy")
    files = {name: tmp_path / secret["file"] for name, secret in COMPOSE["secrets"].items()}
    for _ in range(2):
        subprocess.run(["sh", "deploy/make-secrets.sh"], cwd=tmp_path, capture_output=True, timeout=60, check=True)
        found = {name: file.read_text() for name, file in files.items()}
        assert len(found["redis_password"]) == 64
        assert len(Keys.read(files["api_keys"])) == 1
        found["api_keys"] += "# mine\n"
        files["api_keys"].write_text(found["api_keys"])
    assert files["api_keys"].read_text().count("# mine") == 2
    assert stat.S_IMODE((tmp_path / "deploy" / "secrets").stat().st_mode) == 0o700


def test_secrets_script_adds_the_key_of_prometheus_to_keys_that_are_there(tmp_path: Path) -> None:
    shutil.copy(ROOT / "deploy" / "make-secrets.sh", tmp_path)
    keys = tmp_path / "secrets" / "api_keys"
    keys.parent.mkdir()
    keys.write_text(f"# from before\nalice:{'ab' * 32}")  # the last line has no end
    inode = keys.stat().st_ino
    for _ in range(2):
        subprocess.run(["sh", tmp_path / "make-secrets.sh"], capture_output=True, timeout=60, check=True)
    key = (tmp_path / "secrets" / "prometheus_key").read_text()
    assert keys.read_text() == f"# from before\nalice:{'ab' * 32}\nprometheus:{digest_of(key)}:watch\n"
    assert keys.stat().st_ino == inode, "a running container keeps the file that it was started with"


def test_api_is_open_to_this_machine_alone_until_it_has_keys() -> None:
    environ = SERVICES["api"]["environment"]
    assert (environ["API_KEYS_FILE"], environ["ALLOW_ANONYMOUS"]) == ("${API_KEYS_FILE:-}", "1")
    assert "api_keys" in SERVICES["api"]["secrets"]
    assert "/healthz" in SERVICES["api"]["healthcheck"]["test"][-1], "it has no key"

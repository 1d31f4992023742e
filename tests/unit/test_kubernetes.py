"""The Kubernetes manifests, rendered by kustomize: valid by Kubernetes' own schemas, and in agreement with compose and code."""

import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from api.app import create_app
from core.config import Settings
from tests.processes import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
PAGE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
COMPOSE_GPU: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text(encoding="utf-8"))["services"]
OVERLAYS = ("cpu", "gpu")
PODS = ("api", "redis", "worker-cpu", "worker-gpu")
SCHEMAS_OF = "1.37"

Manifest = dict[str, Any]


def kustomize(folder: Path) -> list[Manifest]:
    """What `kubectl apply -k` would send."""
    kubectl = shutil.which("kubectl", path=Path(sys.executable).parent) or shutil.which("kubectl")
    if kubectl is None and sys.platform != "linux":
        pytest.skip("kubectl is not installed, and its Python package has no build for this machine")
    assert kubectl is not None
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return list(yaml.safe_load_all(done.stdout))


@functools.cache
def rendered(overlay: str) -> list[Manifest]:
    return kustomize(FOLDER / overlay)


def of_kind(*kinds: str) -> Iterator[Manifest]:
    """All manifests of these kinds; the gpu overlay holds everything."""
    yield from (found for found in rendered("gpu") if found["kind"] in kinds)


def named(kind: str, name: str) -> Manifest:
    (found,) = [found for found in of_kind(kind) if found["metadata"]["name"] == name]
    return found


def pod(name: str) -> Manifest:
    """The pod template of a Deployment or StatefulSet."""
    (found,) = [found for found in of_kind("Deployment", "StatefulSet") if found["metadata"]["name"] == name]
    return found["spec"]["template"]


def container(name: str) -> Manifest:
    (found,) = pod(name)["spec"]["containers"]
    return found


def selected(selector: dict[str, str]) -> set[str]:
    """The pods that carry these labels."""
    return {name for name in PODS if selector.items() <= pod(name)["metadata"]["labels"].items()}


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_are_valid_by_the_published_schemas(overlay: str) -> None:
    unknown = []
    for found in rendered(overlay):
        try:
            kubernetes_validate.validate(found, SCHEMAS_OF, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            unknown.append(found["kind"])
    assert unknown == ["ScaledObject"] * (overlay == "gpu")  # KEDA's own; below


def test_schemas_refuse_what_does_not_exist() -> None:
    deployment = yaml.safe_load(yaml.safe_dump(named("Deployment", "api")))
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, SCHEMAS_OF, strict=True)


def test_gpu_is_cpu_and_more_and_everything_is_in_one_namespace() -> None:
    assert [found for found in rendered("cpu") if found not in rendered("gpu")] == []
    assert {found["metadata"]["name"] for found in of_kind("Deployment", "StatefulSet")} == set(PODS)
    namespaces = {found["metadata"].get("namespace") for found in rendered("gpu") if found["kind"] != "Namespace"}
    assert namespaces == {next(of_kind("Namespace"))["metadata"]["name"]}


def test_selectors_find_their_pods_and_ports_exist() -> None:
    for owner in of_kind("Deployment", "StatefulSet"):
        name = owner["metadata"]["name"]
        assert selected(owner["spec"]["selector"]["matchLabels"]) == {name}
        for constraint in owner["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
            assert selected(constraint["labelSelector"]["matchLabels"]) == {name}
    for service in of_kind("Service"):
        (name,) = selected(service["spec"]["selector"])
        assert name == service["metadata"]["name"]
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= {port["name"] for port in container(name)["ports"]}
    for budget in of_kind("PodDisruptionBudget"):
        (name,) = selected(budget["spec"]["selector"]["matchLabels"])
        assert budget["spec"]["minAvailable"] < named("Deployment", name)["spec"]["replicas"]


def test_network_lets_in_what_is_needed_and_nothing_else() -> None:
    rules = {found["metadata"]["name"]: found["spec"] for found in of_kind("NetworkPolicy")}
    assert rules["nothing-else"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    let_in: dict[str, list[Any]] = {name: [] for name in PODS}
    for rule in rules.values():
        for name in selected(rule["podSelector"].get("matchLabels", {})):
            for ingress in rule.get("ingress", []):
                assert {port["port"] for port in ingress["ports"]} <= {port["name"] for port in container(name)["ports"]}
                let_in[name] += ingress["from"]
    assert let_in["worker-cpu"] == let_in["worker-gpu"] == []
    (redis_clients,) = [rule["podSelector"]["matchLabels"] for rule in let_in["redis"]]
    assert selected(redis_clients) == {"api", "worker-cpu", "worker-gpu"}
    assert selected(rules["redis-clients"]["podSelector"]["matchLabels"]) == selected(redis_clients)
    assert selected(rules["redis-clients"]["egress"][0]["to"][0]["podSelector"]["matchLabels"]) == {"redis"}
    assert selected(rules["model-downloads"]["podSelector"]["matchLabels"]) == {"worker-cpu", "worker-gpu"}
    labels = [rule["namespaceSelector"]["matchLabels"] for rule in let_in["api"]]
    assert labels == [{"vector-api/api": "client"}, {"kubernetes.io/metadata.name": "keda"}]
    assert "vector-api/api=client" in PAGE


@pytest.mark.parametrize("name", PODS)
def test_pods_have_no_rights_and_have_limits(name: str) -> None:
    spec, found = pod(name)["spec"], container(name)
    context = spec["securityContext"]
    user = 999 if name == "redis" else 10001
    assert (context["runAsNonRoot"], context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (True, user, user, user)
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert found["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False  # a Service named api would set API_PORT
    assert {"cpu", "memory"} <= set(found["resources"]["requests"])
    assert "memory" in found["resources"]["limits"]
    assert {"startupProbe", "livenessProbe"} <= set(found)
    mounts = {mount["name"] for mount in found["volumeMounts"]}
    claims = {claim["metadata"]["name"] for claim in named("StatefulSet", "redis")["spec"]["volumeClaimTemplates"]}
    assert mounts == {volume["name"] for volume in spec["volumes"]} | (claims if name == "redis" else set())


def test_environment_names_settings_that_exist_with_values_they_take() -> None:
    (config,) = of_kind("ConfigMap")
    settings = {field.name.upper() for field in fields(Settings)}
    for name in ("api", "worker-cpu", "worker-gpu"):
        assert container(name)["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]
        environ = config["data"] | {item["name"]: item["value"] for item in container(name)["env"]}
        assert set(environ) <= settings
        Settings.from_env({key: value for key, value in environ.items() if key != "REDIS_PASSWORD_FILE"})
    assert config["data"]["REDIS_URL"] == COMPOSE["api"]["environment"]["REDIS_URL"]


@pytest.mark.parametrize("queue", OVERLAYS)
def test_worker_is_the_one_of_the_compose_file(queue: str) -> None:
    found = container(f"worker-{queue}")
    compose = (COMPOSE | COMPOSE_GPU)["worker-gpu" if queue == "gpu" else "worker"]
    assert found["image"] == compose["image"]
    assert found["args"] == compose["command"][: compose["command"].index("--loglevel")]
    lines = (ROOT / "deploy" / f"{queue}.env").read_text().splitlines()
    assert {item["name"]: item["value"] for item in found["env"]} == dict(
        line.split("=", 1) for line in lines if line and not line.startswith("#")
    )
    for probe in ("startupProbe", "livenessProbe"):
        assert found[probe]["exec"]["command"][-1] == COMPOSE["worker"]["healthcheck"]["test"][-1]
    patience = found["startupProbe"]["periodSeconds"] * found["startupProbe"]["failureThreshold"]
    assert patience == seconds(COMPOSE["worker"]["healthcheck"]["start_period"])
    assert pod(f"worker-{queue}")["spec"]["terminationGracePeriodSeconds"] == seconds(COMPOSE["worker"]["stop_grace_period"])


def test_api_is_the_one_of_the_compose_file_and_its_probes_ask_paths_it_has() -> None:
    found = container("api")
    assert found["image"] == COMPOSE["api"]["image"]
    paths = {rule.rule for rule in create_app(Settings()).url_map.iter_rules()}
    probes = {name: found[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/healthz",
    }
    assert "/healthz" in paths
    assert {"name": "ALLOW_ANONYMOUS", "value": "1"} in found["env"]
    (port,) = found["ports"]
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert {"name": "API_PORT", "value": str(port["containerPort"])} in found["env"]
    pause = int(found["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod("api")["spec"]["terminationGracePeriodSeconds"] == pause + seconds(COMPOSE["api"]["stop_grace_period"])


def test_redis_is_the_one_of_the_compose_file() -> None:
    found = container("redis")
    assert found["command"][-1] == COMPOSE["redis"]["command"][-1].replace("$$", "$").replace("/run/secrets/", "/secrets/")
    assert f"REDIS_IMAGE:-{found['image']}" in COMPOSE["redis"]["image"]
    ping = COMPOSE["redis"]["healthcheck"]["test"][-1].replace("$$", "$").replace("/run/secrets/", "/secrets/")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert found[probe]["exec"]["command"] == ["sh", "-c", ping]


def test_secret_is_a_file_that_the_page_tells_how_to_make() -> None:
    for name in PODS:
        (mount,) = [mount for mount in container(name)["volumeMounts"] if mount["name"] == "secrets"]
        assert (mount["mountPath"], mount["readOnly"]) == ("/secrets", True)
        (volume,) = [volume for volume in pod(name)["spec"]["volumes"] if volume["name"] == "secrets"]
        assert volume["secret"] == {"secretName": "vector-api", "defaultMode": 0o440}
    assert next(of_kind("ConfigMap"))["data"]["REDIS_PASSWORD_FILE"] == "/secrets/redis_password"
    assert "create secret generic vector-api --from-file=deploy/secrets/redis_password" in PAGE
    assert not list(of_kind("Secret"))


def test_keda_scales_the_gpu_worker_and_nobody_else_does() -> None:
    """Keys of ScaledObject and of the metrics-api scaler as in KEDA 2.16; what its paths find is in test_scaling_figures."""
    (scaled,) = of_kind("ScaledObject")
    spec = scaled["spec"]
    target = named("Deployment", spec["scaleTargetRef"]["name"])
    assert target["metadata"]["name"] == "worker-gpu"
    assert "replicas" not in target["spec"]
    assert container("worker-gpu")["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spec["minReplicaCount"] == 0 < spec["maxReplicaCount"]
    assert set(spec) == {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod", "triggers"}
    service = named("Service", "api")
    host, port = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc", service["spec"]["ports"][0]["port"]
    for trigger in spec["triggers"]:
        assert trigger["type"] == "metrics-api"
        assert trigger["metricType"] in ("AverageValue", "Value")
        assert set(trigger["metadata"]) == {"url", "valueLocation", "targetValue"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        assert trigger["metadata"]["url"] == f"http://{host}:{port}/v1/queues"


def build_overlay(folder: Path, text: str) -> list[Manifest]:
    """Manifests of an overlay that lies beside a clone, as the page has it."""
    shutil.copytree(FOLDER, folder / "vector-api" / "deploy" / "kubernetes")
    (folder / "mine").mkdir()
    (folder / "mine" / "kustomization.yaml").write_text(text)
    return kustomize(folder / "mine")


def yaml_of_the_page(start: str) -> str:
    (text,) = [block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if block.startswith(start)]
    return text


def images_in(manifests: list[Manifest]) -> set[str]:
    owners = [found["spec"]["template"]["spec"] for found in manifests if found["kind"] in ("Deployment", "StatefulSet")]
    return {item["image"] for spec in owners for item in spec["containers"]}


OURS = {f"registry.example/vector-api:{tag}" for tag in ("api", "cpu", "gpu")}


def test_overlay_of_the_page_builds(tmp_path: Path) -> None:
    found = build_overlay(tmp_path, yaml_of_the_page("# mine/kustomization.yaml"))
    assert images_in(found) == OURS | {container("redis")["image"]}
    (config,) = [manifest["data"] for manifest in found if manifest["kind"] == "ConfigMap"]
    assert config["MODEL_REVISION"]
    assert config["REDIS_URL"] == next(of_kind("ConfigMap"))["data"]["REDIS_URL"]


def test_overlay_with_another_redis_builds(tmp_path: Path) -> None:
    found = build_overlay(tmp_path, yaml_of_the_page("# mine/kustomization.yaml") + yaml_of_the_page("patches:"))
    assert images_in(found) == OURS
    named_redis = [manifest["kind"] for manifest in found if manifest["metadata"]["name"] == "redis"]
    assert named_redis == []
    (policy,) = [manifest["spec"] for manifest in found if manifest["metadata"]["name"] == "redis-clients"]
    assert policy["egress"][0]["to"] == [{"ipBlock": {"cidr": "10.1.2.0/24"}}]
    assert policy["egress"][1]["ports"][0]["port"] == 53

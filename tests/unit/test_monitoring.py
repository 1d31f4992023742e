"""Prometheus' rules and Grafana's board: valid, in agreement with the compose files and the pages, and of metrics that exist."""

import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.processes import ROOT
from tests.unit.test_container_files import headings_of

PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
BOARD_FILE = GRAFANA / "dashboards" / "vector-api.json"
BOARD: dict[str, Any] = json.loads(BOARD_FILE.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
CONFIG = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
]
RULE_TESTS = ROOT / "tests" / "unit" / "prometheus_rules.yml"
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
EXPRESSIONS = [rule["expr"] for rule in RULES] + [target["expr"] for panel in PANELS for target in panel["targets"]]
METRIC = re.compile(r"\bvector_api_[a-z0-9_]+")
GRID = 24


def promtool(*arguments: str | Path) -> None:
    """Runs promtool; fails with what it says."""
    if shutil.which("promtool") is None and "CI" not in os.environ:
        pytest.skip("needs promtool, which comes with Prometheus")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_configuration_and_rules(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("va_key")
    shutil.copy(PROMETHEUS / "rules.yml", tmp_path)
    text = (
        (PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8").replace("/run/secrets/prometheus_key", str(tmp_path / "key"))
    )
    (tmp_path / "prometheus.yml").write_text(text)
    promtool("check", "config", tmp_path / "prometheus.yml")  # and the rules that it names
    assert CONFIG["rule_files"] == ["rules.yml"]


def test_alerts_fire_when_they_should_and_not_when_they_should_not() -> None:
    promtool("test", "rules", RULE_TESTS)
    expected: dict[str, list[bool]] = {rule["alert"]: [] for rule in RULES}
    for case in yaml.safe_load(RULE_TESTS.read_text(encoding="utf-8"))["tests"]:
        for item in case.get("alert_rule_test", []):
            expected[item["alertname"]].append(bool(item["exp_alerts"]))
    assert {alert for alert, found in expected.items() if set(found) != {True, False}} == set()


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_each_alert_says_what_is_wrong_and_where_to_read_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor == rule["alert"].lower()
    assert anchor in headings_of((ROOT / page).read_text(encoding="utf-8"))


def test_the_page_tells_of_every_alert_and_every_row_and_of_no_others() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (\w+)$", page, re.MULTILINE) == [rule["alert"] for rule in RULES]
    told = re.findall(r"^\| ([A-Z][\w ]+) \|", page.partition("## The board")[2], re.MULTILINE)
    assert told == [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"]


def test_rules_and_board_name_metrics_that_exist() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    known = set(METRIC.findall(page))
    named = {metric for expression in EXPRESSIONS for metric in METRIC.findall(expression)}
    assert {metric for metric in named if not {metric, metric.removesuffix("_bucket")} & known} == set()
    assert len(named) > 40


def test_board_is_written_as_grafana_would_and_can_be_read_as_a_diff() -> None:
    assert BOARD_FILE.read_text(encoding="utf-8") == json.dumps(BOARD, indent=2, ensure_ascii=False) + "\n"
    assert (BOARD["uid"], BOARD["title"], "id" in BOARD) == ("vector-api", "vector-api", False)
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_panels_lie_in_the_grid_and_over_no_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert at["x"] >= 0, panel["title"]
        assert at["x"] + at["w"] <= GRID, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len(taken) == GRID * len({y for _, y in taken}), "no gaps"


@pytest.mark.parametrize("panel", PANELS, ids=[f"{panel['id']}-{panel['title']}" for panel in PANELS])
def test_each_panel_says_what_it_shows_in_which_unit_and_from_where(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["type"] in ("stat", "timeseries", "table")
    assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"]
    variable = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == variable
    assert panel["targets"]
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)
    for target in panel["targets"]:
        assert target["datasource"] == variable
        assert target["instant"] != target["range"]
        assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= {"queue", "__rate_interval"}
        grouped = {name for found in re.findall(r"by \(([^()]*)\)", target["expr"]) for name in re.split(r",\s*", found)}
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= grouped
        assert set(re.findall(r"\[([^]]+)\]", target["expr"])) <= {"$__rate_interval"}


def test_grafana_is_given_the_board_and_the_data_source_that_it_asks() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "vector-api.yml").read_text())["providers"]
    service = SERVICES["grafana"]
    mounts = dict(volume.split(":")[1::-1] for volume in service["volumes"])
    assert mounts["/etc/grafana/provisioning"] == "./deploy/grafana/provisioning"
    assert mounts[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    home = service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{BOARD_FILE.name}"
    assert source["url"] == f"http://prometheus:{SERVICES['prometheus']['ports'][0].rpartition(':')[2]}"
    assert source["jsonData"]["timeInterval"] == CONFIG["global"]["scrape_interval"], "of which $__rate_interval is made"
    assert SERVICES["prometheus"]["image"].endswith(f":v{source['jsonData']['prometheusVersion']}")
    variable, queue = BOARD["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == ("datasource", "datasource", source["type"])
    assert variable["current"]["value"] == source["uid"]
    assert (queue["name"], queue["datasource"]["uid"]) == ("queue", "${datasource}")


def test_grafana_lets_nobody_in_without_its_password_and_asks_nobody_on_the_internet() -> None:
    environ = SERVICES["grafana"]["environment"]
    assert environ["GF_AUTH_ANONYMOUS_ENABLED"] == environ["GF_USERS_ALLOW_SIGN_UP"] == "false"
    assert environ["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/secrets/grafana_password"
    assert SERVICES["grafana"]["secrets"] == ["grafana_password"]
    assert environ["GF_ANALYTICS_REPORTING_ENABLED"] == environ["GF_ANALYTICS_CHECK_FOR_UPDATES"] == "false"
    assert environ["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"


def test_prometheus_asks_the_api_with_its_key_and_reaches_no_redis() -> None:
    (scrape,) = CONFIG["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"api:{SERVICES['api']['environment']['API_PORT']}"]}]
    assert scrape["authorization"] == {"credentials_file": "/run/secrets/prometheus_key"}
    service = SERVICES["prometheus"]
    assert service["secrets"] == ["prometheus_key"]
    assert "./deploy/prometheus:/etc/prometheus:ro" in service["volumes"]
    assert "--config.file=/etc/prometheus/prometheus.yml" in service["command"]
    for name in ("prometheus", "grafana"):
        assert SERVICES[name]["networks"] == ["outside"]
    assert "outside" in SERVICES["api"]["networks"]
    assert "outside" not in SERVICES["redis"]["networks"]

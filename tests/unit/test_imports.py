"""What may import what, each seen in an interpreter of its own. Packages that are not there make no difference to these tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODELS = {"torch", "transformers", "sentence_transformers", "tokenizers", "openvino", "onnxruntime"}
CORE = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in (ROOT / "core").rglob("*.py")
)


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that are loaded after the statement."""
    script = f"{statement}\nimport sys, json; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_api_loads_neither_models_nor_worker() -> None:
    loaded = loaded_by("import api; api.create_app()")
    assert "flask" in loaded
    assert not loaded & (MODELS | {"worker", "launcher", "obstore"})


def test_worker_parent_loads_neither_models_nor_api() -> None:
    loaded = loaded_by("import worker")
    assert "celery" in loaded
    assert not loaded & (MODELS | {"api", "flask", "numpy", "launcher", "obstore"})


def test_worker_registers_its_task_and_its_inspect_commands_without_a_model() -> None:
    loaded = loaded_by(
        "import worker\n"
        "from celery.worker.control import Panel\n"
        "assert 'embed_pending' in worker.app.tasks\n"
        "assert {'device', 'model', 'ledger'} <= set(Panel.data)"
    )
    assert not loaded & MODELS


def test_doctor_loads_no_model_into_its_own_process() -> None:
    loaded = loaded_by("import doctor.__main__")
    assert "redis" in loaded
    assert not loaded & (MODELS | {"api", "worker", "launcher", "numpy"})


@pytest.mark.parametrize("module", CORE)
def test_core_stands_alone(module: str) -> None:
    loaded = loaded_by(f"import {module}")
    assert not loaded & (MODELS | {"api", "worker", "launcher", "obstore", "flask", "werkzeug", "gunicorn", "numpy", "pydantic"})
    assert ("celery" in loaded) == (module == "core.queues")
    if module not in ("core.blocks", "core.queues") and not module.startswith("core.ledger"):
        assert not loaded & {"redis", "msgpack", "kombu"}

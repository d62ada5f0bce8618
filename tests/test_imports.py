"""Imports point one way: the contracts of pyproject.toml see every module, and workers load no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("schemas", "streams", "learner", "deploy")
LINT = Path(sys.executable).parent / "lint-imports"
OF_LEARNER = sorted(
    f"learner.{path.stem}"
    for path in (ROOT / "learner").iterdir()
    if (path.suffix == ".py" and path.stem != "__init__") or (path.is_dir() and any(path.glob("*.py")))
)
OTHERS = [name for name in OF_LEARNER if name != "learner.policy"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what is shipped, to spoil."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=lambda _, names: [n for n in names if "__pyc" in n])
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def linted(tree: Path) -> tuple[int, str]:
    """Exit code and words of import-linter."""
    done = subprocess.run(
        [LINT, "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("importer", ["streams/features.py", "learner/policy/network.py"])
def test_no_module_of_the_learner_but_policy_may_be_imported_by_workers(tree: Path, importer: str) -> None:
    assert linted(tree)[0] == 0, "as it is, every contract is kept"
    with (tree / importer).open("a") as file:
        file.writelines(f"\nimport {name}" for name in OTHERS)

    code, said = linted(tree)

    assert code == 1
    module = importer.removesuffix(".py").replace("/", ".")
    unseen = [name for name in OTHERS if f"{module} -> {name} " not in said]
    assert unseen == []
    assert len(OTHERS) > 20


def test_importing_the_agents_leaves_torch_unloaded() -> None:
    code = "import sys; import streams.agents, streams.app, streams.decider; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "streams.agents" in loaded
    assert [name for name in loaded if name.partition(".")[0] == "torch"] == []
    assert [name for name in loaded if name in OTHERS] == []

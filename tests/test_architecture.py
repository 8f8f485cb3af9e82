"""The rules of dependency: a wrong arrow, or a heavy import at the door, fails here."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIELD_LIBRARIES = {"xarray", "anndata", "scanpy", "cv2", "segmentation_models_pytorch", "uproot"}
HEAVY = {"lightning_fabric", "scanpy", "segmentation_models_pytorch", "matplotlib", "distributed"}


def imported_roots(path: Path) -> set[str]:
    roots: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            roots.add(node.module.split(".")[0])
    return roots


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", sources("core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_core_knows_no_application(path):
    assert not imported_roots(path) & ({"apps", "pipelines"} | FIELD_LIBRARIES)


@pytest.mark.parametrize("path", sources("apps"), ids=lambda p: str(p.relative_to(ROOT)))
def test_apps_import_core_and_their_own_rooms_only(path):
    assert "pipelines" not in imported_roots(path)
    own = path.relative_to(ROOT / "apps").parts[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("apps."):
            assert node.module.split(".")[1] == own


def test_importing_core_loads_nothing_heavy():
    code = "import sys, core, core.model; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    assert not HEAVY & {name.split(".")[0] for name in loaded.stdout.split()}

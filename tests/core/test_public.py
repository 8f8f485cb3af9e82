"""Packages give their public names, and import nothing for it until they are asked."""

import importlib
import subprocess
import sys

import pytest

PACKAGES = ["core", *(f"apps.{n}" for n in ("climate_downscaling", "single_cell"))]
HEAVY = ["torch", "xarray", "scanpy", "cv2"]
PACKAGES += ["apps.hep_simulation", "apps.anomaly_driving"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there(package):
    module = importlib.import_module(package)
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Nothing'"):
        module.Nothing  # noqa: B018


def test_apps_import_nothing_heavy():
    code = f"import sys, {', '.join(PACKAGES)}; print([n in sys.modules for n in {HEAVY}])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str([False] * len(HEAVY))

"""What loads without torch, and who instantiates; who may import whom stands in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "resnet_lab"


def test_only_build_instantiates_configs():
    users = {path.name for path in SOURCE.rglob("*.py") if "hydra.utils import" in path.read_text()}
    assert users == {"build.py"}


@pytest.mark.parametrize(
    "module",
    [
        "config.check",
        "run.claim",
        "screen",
        "data.sources",
        "models.family",
        "config.untrusted",
        "cli",
        "bench.run",
        "report.write",
        "sweep.launcher",
    ],
)
def test_light_rooms_load_without_torch(module):
    program = f"import sys; sys.modules['torch'] = None; import resnet_lab.{module}"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

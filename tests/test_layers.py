"""What import-linter cannot see: what loads without torch, and who instantiates configs."""

import subprocess
import sys

from lab import ROOT


def test_only_build_instantiates_configs():
    source = ROOT / "src" / "resnet_lab"
    users = {path.name for path in source.rglob("*.py") if "hydra.utils import" in path.read_text()}
    assert users == {"build.py"}


def test_what_needs_no_net_loads_without_torch():
    modules = ("cli", "data.sources", "models.family", "report.write", "sweep.sweep")
    program = "import sys; sys.modules['torch'] = None"
    program += "".join(f"; import resnet_lab.{module}" for module in modules)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

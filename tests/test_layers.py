"""Who may import whom: imports go down only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "resnet_lab"

# For each module or room: which of ours it may import, and which big libraries. Top to bottom.
HYDRA, TORCH, LIGHTNING = {"hydra", "omegaconf"}, {"torch"}, {"lightning", "torchmetrics"}
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "cli": ({"bench.run", "commands", "config", "report"}, set()),
    "commands.picture_grid": (set(), set()),
    "commands": (
        {"classifier", "commands", "config", "data", "experiment", "screen"},
        {"omegaconf"} | TORCH | LIGHTNING,
    ),
    "bench.run": ({"bench", "screen"}, set()),
    "bench.show": (set(), set()),
    "bench.process": ({"config"}, set()),
    "bench.gpu": ({"bench"}, TORCH),
    "bench.pipeline": ({"bench", "data"}, TORCH | {"torchvision"}),
    "bench.common": ({"bench", "data", "experiment"}, TORCH | LIGHTNING | {"torchvision"}),
    "bench.training": ({"bench", "config", "data", "experiment"}, HYDRA | TORCH | LIGHTNING),
    "bench.noise": ({"data.sources"}, set()),
    "bench.gate": (set(), set()),
    "report": ({"report", "screen", "study", "style"}, set()),
    "commands.summary": (
        {"config", "experiment", "models", "screen", "sweep.grid", "trust"},
        HYDRA,
    ),
    "commands.find_lr": (
        {"callbacks.range_test", "config", "experiment", "screen", "style"},
        HYDRA,
    ),
    "commands.stats": ({"config", "data", "experiment", "screen"}, set()),
    "sweep.measure": ({"config", "experiment"}, HYDRA | TORCH | LIGHTNING),
    "sweep.server": (set(), set()),
    "sweep.search": ({"config", "screen", "study", "sweep"}, HYDRA),
    "sweep": ({"config", "resume", "screen", "stop", "sweep", "trust"}, HYDRA),
    "experiment": (
        {"board", "callbacks", "checkpoint_io", "classifier", "config", "data", "models"}
        | {"ranks", "rendezvous", "resume", "screen", "stop", "trust"},
        HYDRA | TORCH | LIGHTNING,
    ),
    "callbacks.prune": ({"study"}, LIGHTNING),
    "callbacks": (
        {"callbacks", "ranks", "resume", "screen", "stop", "style"},
        TORCH | LIGHTNING,
    ),
    "classifier": (set(), TORCH | LIGHTNING),
    "board": (set(), LIGHTNING | {"tensorboard"}),
    "checkpoint_io": (set(), TORCH | LIGHTNING),
    "schedule": (set(), TORCH),
    "config": ({"models.family", "ranks", "rendezvous", "resume", "trust"}, HYDRA),
    "rendezvous": (set(), TORCH),
    "ranks": (set(), set()),
    "sharding": (set(), TORCH | LIGHTNING),
    "resume": (set(), set()),
    "trust": (set(), HYDRA),
    "screen": (set(), set()),
    "stop": ({"ranks"}, set()),
    "study": (set(), set()),
    "style": (set(), set()),
    "data.datamodule": ({"data"}, TORCH | LIGHTNING),
    "data.loaders": ({"data", "stop"}, TORCH),
    "data.check": ({"data"}, set()),
    "data.sources": ({"data"}, {"torchvision", "sklearn"}),
    "data.cache": ({"data"}, set()),
    "data.decode": (set(), set()),
    "data.plan": (set(), set()),
    "data.augment": (set(), TORCH),
    "models.family": (set(), set()),
    "models.pretrained": (set(), TORCH | {"torchvision"}),
    "models": ({"models"}, TORCH),
}
WATCHED = HYDRA | TORCH | LIGHTNING | {"torchvision", "sklearn", "tensorboard", "pandas"}


def modules() -> list[str]:
    paths = [p for p in SOURCE.rglob("*.py") if p.name != "__init__.py"]
    return sorted(".".join(p.relative_to(SOURCE).with_suffix("").parts) for p in paths)


def imports(module: str) -> set[str]:
    tree = ast.parse((SOURCE / (module.replace(".", "/") + ".py")).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # "from resnet_lab import x" names a module of ours in x.
            found |= (
                {f"resnet_lab.{alias.name}" for alias in node.names}
                if node.module == "resnet_lab"
                else {
                    f"{node.module}.{alias.name}"
                    if (SOURCE.parent / node.module.replace(".", "/")).is_dir()
                    else node.module
                    for alias in node.names
                }
            )
    return found


def within(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(room + ".") for room in rooms)


@pytest.mark.parametrize("module", modules())
def test_imports_go_down_only(module):
    room = max((r for r in ROOMS if within(module, {r})), key=len, default=None)
    assert room is not None, f"{module} has no place in this table"
    ours, libraries = ROOMS[room]
    for name in imports(module):
        if name.startswith("resnet_lab."):
            assert within(name.removeprefix("resnet_lab."), ours), f"{module} imports {name}"
        elif name.split(".")[0] in WATCHED:
            assert name.split(".")[0] in libraries, f"{module} imports {name}"


def test_only_experiment_instantiates_configs():
    users = [path.name for path in SOURCE.rglob("*.py") if "hydra.utils import" in path.read_text()]
    assert users == ["experiment.py"]


@pytest.mark.parametrize(
    "module",
    [
        "config",
        "resume",
        "screen",
        "trust",
        "data.sources",
        "models.family",
        "cli",
        "bench.run",
        "report.write",
    ],
)
def test_light_rooms_load_without_torch(module):
    program = f"import sys; sys.modules['torch'] = None; import resnet_lab.{module}"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

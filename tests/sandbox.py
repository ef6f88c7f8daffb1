"""A folder in which sweeps run for real, their jobs being stand-ins for train.py."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FAKE_SLURM = Path(__file__).with_name("fake_slurm")

# A job does what its key `how` says, and reaches what its seed or its learning rate says. A trial
# that finds the file `hold`, and is the fourth to start, waits to be stopped and then ends as that
# file says.
STAND_IN = f"""
import json, os, signal, subprocess, sys, time
from pathlib import Path

def sweep():
    import hydra
    from resnet_lab.config.compose import VERSION_BASE
    from resnet_lab.config.messages import composition_errors
    with composition_errors():
        hydra.main({str(ROOT / "conf")!r}, "train", **VERSION_BASE)(lambda cfg: None)()

def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))

def stop(*_):
    if Path("hold").exists() and Path("hold").read_text() == "finish":
        finish()
        sys.exit(0)
    write(folder / "checkpoints" / "last.ckpt", {{}})
    write(folder / "result.json", {{"status": "interrupted"}})
    sys.exit(143)

def finish():
    seed, rate = int(given.get("seed", 0)), float(given.get("optimizer.lr", 0.1))
    (folder / "metrics.csv").write_text("epoch,val/acc\\n1,0.5\\n")
    write(folder / "result.json", {{
        "status": "finished", "test/acc": 0.9 - seed / 10, "train_seconds": 10 * rate,
        "val/acc": float("nan") if how == "silent" else 0.5 + seed / 10 - abs(rate - 0.1)}})

def job():
    global folder, given, how
    given = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    folder = Path((given.get("resume") or given["hydra.run.dir"]).strip('"'))
    resumed = "resume" in given
    with open("starts.txt", "a") as starts:
        starts.write(folder.name + (" resumed" if resumed else "") + "\\n")
    if resumed:
        given = json.loads((folder / "config.yaml").read_text())
    how, seed = given.get("+how", "finish"), int(given.get("seed", 0))
    here = sys.modules["__main__"]
    peer = subprocess.Popen(["sleep", "100"]) if how in ("sleep", "deaf", "kill") else None
    write(folder / "job.json", {{
        "arguments": sys.argv[1:], "pid": os.getpid(), "parent": os.getppid(),
        "peer": peer and peer.pid, "env": dict(os.environ), "script": sys.argv[0],
        "spec": here.__spec__ is not None, "file": here.__file__,
        "loaded": "wave" in sys.modules, "terminal": sys.stdout.isatty(),
    }})
    write(folder / "config.yaml", given)
    write(folder / "result.json", {{"status": "running"}})
    print("hello from", folder.name)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if how == "deaf" else stop)
    if how == "raise" or (how == "flaky" and not (folder / "attempt-1").exists()):
        raise RuntimeError("no luck today")
    if how == "exit":
        sys.exit(0)
    if how == "kill":
        if seed and not resumed:
            write(folder / "checkpoints" / "last.ckpt", {{}})
        if not resumed:
            os.kill(os.getpid(), signal.SIGKILL)
    if how == "orphan":
        os.kill(os.getppid(), signal.SIGKILL)
    held = Path("hold").exists() and len(Path("starts.txt").read_text().splitlines()) == 4
    if held or (how in ("sleep", "orphan", "deaf") and not resumed):
        write(folder / "ready", {{}})
        time.sleep(60)
        sys.exit("nobody stopped me")
    if float(given.get("optimizer.lr", 0)) > 0.5:
        sys.exit("the loss is nan")
    finish()

if "-m" in sys.argv:
    sweep()
else:
    job()
"""


class Sandbox:
    """A folder with the stand-in, where sweeps are run.

    Args:
        always: overrides of every command.
    """

    def __init__(self, folder: Path, *always: str) -> None:
        self.folder, self.always = folder, always
        folder.mkdir(exist_ok=True)
        (folder / "stand_in.py").write_text(STAND_IN)
        self.sweep = folder / "outputs" / "sweeps" / "s"
        self.env: dict[str, str] = {}

    def command(self, *overrides: str) -> list[str]:
        quick = ("hydra.launcher.grace_seconds=1",)
        if not any("slurm" in override for override in self.always):
            quick += ("hydra.launcher.preload=[wave]",)
        return [
            *(sys.executable, "stand_in.py", "-m", "sweep.name=s"),
            *(*quick, *self.always, *overrides),
        ]

    def run(self, *overrides: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*overrides),
            cwd=self.folder,
            env=os.environ | self.env | env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*overrides),
            cwd=self.folder,
            env=os.environ | self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell that runs the tests in the background has SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def mistake(self, *overrides: str) -> str:
        """The message that a sweep ends with; in this process, which saves starting another."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", self.command(*overrides)[1:])
            for name, value in self.env.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as end:
                runpy.run_path("stand_in.py", run_name="__main__")
        return str(end.value)

    def starts(self) -> Counter[str]:
        """How often each job was started."""
        path = self.folder / "starts.txt"
        return Counter(path.read_text().splitlines() if path.exists() else [])

    def jobs(self) -> dict[str, dict]:
        """The jobs of sweep.json."""
        try:
            jobs = json.loads((self.sweep / "sweep.json").read_text())["jobs"]
        except FileNotFoundError:
            return {}
        return {job["folder"]: job for job in jobs}

    def states(self) -> dict[str, str]:
        return {name: job["state"] for name, job in self.jobs().items()}

    def seen(self, job: str) -> dict:
        """What a job saw of its process and environment."""
        return json.loads((self.sweep / job / "job.json").read_text())


class FakeSlurm:
    """Binaries that stand for SLURM's and run each job at once as a process of this machine.

    Its folder holds `state.N`, `script.N`, `arguments.N` and `exit.N` of each job, and obeys the
    files `limit` (jobs at once; sbatch refuses more), `refuse` (sbatch refuses every job with this
    message), `hold` (jobs stay pending) and `down` (squeue does not answer).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.env = {
            "FAKE_SLURM": str(folder),
            "PATH": f"{FAKE_SLURM}:{os.environ['PATH']}",
        }

    def set(self, name: str, text: str = "") -> None:
        (self.folder / name).write_text(text)

    def clear(self, name: str) -> None:
        (self.folder / name).unlink()

    def arguments(self) -> list[str]:
        """Of each job that sbatch took, in their order."""
        paths = self.folder.glob("arguments.*")
        return [p.read_text() for p in sorted(paths, key=lambda p: int(p.suffix[1:]))]

    def states(self) -> Counter[str]:
        return Counter(path.read_text().strip() for path in self.folder.glob("state.*"))


def alive(process: int) -> bool:
    """Whether a process runs (one that is dead and not yet reaped does not)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def copied(sandbox: Sandbox, folder: Path) -> Sandbox:
    """The same with all its files in another folder."""
    shutil.copytree(sandbox.folder, folder, dirs_exist_ok=True)
    return Sandbox(folder, *sandbox.always)

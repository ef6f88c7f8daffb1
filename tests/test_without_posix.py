"""What Windows lacks is not needed: each module can be imported, and a single run trains.

Windows itself is not here. In a process of its own, our modules do not see the names and modules
that Python has on POSIX systems alone; other packages do, for what they do on Windows is their
affair.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lab import QUICK, ROOT

SIGNALS = "USR1 USR2 HUP ALRM KILL QUIT CHLD STOP CONT TSTP PIPE TTIN TTOU"
OF_SIGNAL = "pthread_sigmask pthread_kill setitimer getitimer alarm pause sigwait pidfd_send_signal"
OF_OS = (
    "fork forkpty getuid geteuid getgid getegid getpgid getpgrp setpgid killpg setsid getsid "
    "posix_fadvise posix_fallocate statvfs fstatvfs sched_getaffinity sched_setaffinity pidfd_open "
    "O_NOFOLLOW O_NONBLOCK O_DIRECTORY O_CLOEXEC O_NOCTTY O_SYNC WNOHANG WUNTRACED nice chown "
    "fchown mkfifo mknod pread pwrite sendfile register_at_fork getgroups uname"
)
MODULES = "fcntl resource pwd grp termios tty pty syslog"
PRELUDE = f"""
import builtins, importlib, os, pkgutil, signal, sys, types
sys.path.insert(0, {str(ROOT / "tests")!r})
HIDDEN = {{
    "os": {OF_OS!r}.split(),
    "signal": {OF_SIGNAL!r}.split() + ["SIG" + name for name in {SIGNALS!r}.split()],
}}
OURS, MODULES = ("resnet_lab", "hydra_plugins"), {MODULES!r}.split()

class Windows(types.ModuleType):
    def __getattribute__(self, name):
        module = super().__getattribute__("__name__")
        if name in HIDDEN[module] and sys._getframe(1).f_globals["__name__"].startswith(OURS):
            raise AttributeError(f"module {{module}} has no attribute {{name}}")
        return super().__getattribute__(name)

os.__class__ = signal.__class__ = Windows
imported = builtins.__import__

def imports(name, globals=None, *args, **kwargs):
    if name in MODULES and str((globals or {{}}).get("__name__")).startswith(OURS):
        raise ImportError(f"no module {{name}}")
    return imported(name, globals, *args, **kwargs)

builtins.__import__ = imports
"""


def without_posix(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python where our modules lack what Windows lacks."""
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


IMPORT_ALL = """
import json, hydra_plugins, resnet_lab
failed = {}
for package in (resnet_lab, hydra_plugins):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except Exception as error:
                failed[module.name] = repr(error)
print(json.dumps(failed))
"""
TRAIN = """
import lab
from pathlib import Path
done = lab.train_here(Path("."), *OVERRIDES)
print(done.stdout, done.stderr, file=sys.stderr)
sys.exit(done.returncode)
"""


def test_a_sweep_says_that_it_needs_fork_and_writes_nothing(tmp_path):
    program = TRAIN.replace("OVERRIDES", repr(["-m", "seed=0,1"]))
    done = without_posix(tmp_path, program)
    assert done.returncode == 1
    assert "error: This system cannot fork processes" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_every_module_can_be_imported(tmp_path):
    done = without_posix(tmp_path, IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}


@pytest.mark.slow
def test_a_run_trains_to_its_end(tmp_path):
    overrides = [*QUICK, "callbacks=[default]", "trainer.max_epochs=1", "hydra.run.dir=run"]
    done = without_posix(tmp_path, TRAIN.replace("OVERRIDES", repr(overrides)))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "finished"
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()

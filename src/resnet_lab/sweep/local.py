"""The jobs of a sweep as processes of this machine, forked from a warm server."""

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Self

from resnet_lab.config.errors import UserError
from resnet_lab.run.folder import RunFolder, SweepFolder
from resnet_lab.run.gpu import GIVEN
from resnet_lab.sweep import ledger
from resnet_lab.sweep.devices import Devices
from resnet_lab.sweep.executor import Ended
from resnet_lab.sweep.job import Job

SERVER = Path(__file__).with_name("server.py")
MPS = "nvidia-cuda-mps-control"  # lets kernels of several processes run on a GPU at once
# Starts it, and ends it as soon as the sweep's process has closed the pipe, or has been killed.
SERVICE = """
"$0" -d >&2 </dev/null || exit
echo started
cat >/dev/null
echo quit | "$0" >&2
rm -rf "$CUDA_MPS_PIPE_DIRECTORY"
"""

# What a launcher of ranks leaves in the environment; a job must find none of it.
RANKS = ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED", "TORCHELASTIC_RUN_ID")


class Local:
    """An `Executor`: each job is a process in a process group of its own (`server.py`).

    Args:
        script: what a job runs, such as train.py.
        preload: modules that the server imports before the first job.
        warm: False starts a bare Python for each job.
        grace_seconds: from being asked to stop to being killed.
        devices: hands out GPUs and threads.
    """

    pending: Set[str] = frozenset()  # what is started runs at once

    def __init__(
        self,
        script: Path,
        preload: Sequence[str],
        warm: bool,
        grace_seconds: float,
        devices: Devices,
    ) -> None:
        if not hasattr(os, "fork"):
            raise UserError(
                "This system cannot fork processes, which a sweep (-m) needs; on Windows run it in "
                "WSL2, or run its jobs one by one without -m."
            )
        self.grace_seconds = grace_seconds
        self.devices = devices
        self.lost: str | None = None
        self._script, self._preload, self._warm = script, preload, warm
        self._environment: dict[str, str] = {}
        self._groups: dict[str, int] = {}  # job -> its process group
        self._since: dict[str, float] = {}  # job -> when its process came to life
        self._born: dict[str, float] = {}  # the same by the clock of files
        self._running: dict[str, Job] = {}  # requested, and not gone
        self._unread = b""
        self._ready = False
        self._signal: int | None = None  # the last that was sent to all

    @contextlib.contextmanager
    def open(self, folder: Path, lock: int, n_jobs: int) -> Iterator[Self]:
        """Start the server; at the end it leaves, and ends whatever still runs."""
        self.devices.n_jobs = n_jobs
        self._log = SweepFolder(folder).server_log
        modules = self._preload if self._warm else ()
        grace = str(self.grace_seconds)
        with self._log.open("w") as output, self._multi_process_service(output.fileno()):
            self._server = subprocess.Popen(
                [sys.executable, "-P", SERVER, grace, self._script, *modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which decides
            )
            assert self._server.stdin is not None
            assert self._server.stdout is not None
            self._selector = selectors.DefaultSelector()
            self._selector.register(self._server.stdout, selectors.EVENT_READ)
            try:
                yield self
            finally:
                with contextlib.suppress(BrokenPipeError):
                    self._server.stdin.close()  # asks the server to stop the jobs and leave
                self._server.wait()
                self._selector.close()
                self._server.stdout.close()

    @contextlib.contextmanager
    def _multi_process_service(self, output: int) -> Iterator[None]:
        """Where jobs share GPUs, and the machine has it: NVIDIA's MPS, for these jobs alone."""
        shared = (self.devices.per_device or 1) > 1 and self.devices.gpus
        if not shared or not shutil.which(MPS) or "CUDA_MPS_PIPE_DIRECTORY" in os.environ:
            yield
            return
        with tempfile.TemporaryDirectory(prefix="mps-") as folder:
            own = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
            service = subprocess.Popen(
                ["sh", "-c", SERVICE, MPS],
                env=os.environ | own,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
            assert service.stdin
            assert service.stdout
            if service.stdout.readline():
                self._environment = own
            try:
                yield
            finally:
                service.stdin.close()
                service.wait(60)
                service.stdout.close()

    def check(self, job: Job) -> None:
        self.devices.wanted(job)

    def find_running(self, folder: Path) -> None:
        """There are none: the processes of an earlier command end with it."""

    def adopt(self, job: Job) -> bool:
        return False

    def room(self, job: Job) -> bool:
        return self.devices.free(job) is not None

    def start(self, job: Job, arguments: list[str]) -> bool:
        """Fork a process for the job; its output is appended to its console.log."""
        gpus = self.devices.take(job)
        if gpus is None:
            return False
        threads = self.devices.threads(job)
        others = (*RANKS, *RENDEZVOUS, GIVEN)
        environment = {k: v for k, v in os.environ.items() if k not in others}
        environment |= self._environment
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = environment[GIVEN] = ",".join(gpus)
        if "OMP_NUM_THREADS" in environment:
            threads = None  # the user has decided
        elif threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        request = {
            "job": job.name,
            "arguments": arguments,
            "env": environment,
            "log": str(RunFolder(job.folder).console.absolute()),
            "threads": threads,
            "warm": self._warm,
        }
        self._running[job.name] = job
        assert self._server.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `ended` will notice
            self._server.stdin.write(json.dumps(request).encode() + b"\n")
            self._server.stdin.flush()
        return True

    def ended(self, timeout: float) -> list[Ended]:
        """Where the server itself is gone (`lost`), its jobs are killed and given as such."""
        assert self._server.stdout is not None
        self.devices.measure()
        for name, job in self._running.items():
            if _written(job) > self._born.get(name, float("inf")):
                self.devices.trained(name)
        if self.lost or not self._selector.select(timeout):
            return []
        received = os.read(self._server.stdout.fileno(), 65536)
        if not received:
            return self._without_server()
        *lines, self._unread = (self._unread + received).split(b"\n")
        ended = []
        for answer in map(json.loads, lines):
            if "ready" in answer:
                self._ready = True
                continue
            name = answer["job"]
            if "pid" in answer:
                self._groups[name] = answer["pid"]
                self._since[name], self._born[name] = time.monotonic(), time.time()
                self.devices.started(name, answer["pid"])
                if self._signal is not None:  # while this one was being started
                    self.signal(self._signal)
            else:
                self._groups.pop(name, None)
                ended.append(self._gone(name, answer["status"]))
        return ended

    def _gone(self, name: str, status: int) -> Ended:
        now = time.monotonic()
        del self._running[name]
        self._born.pop(name, None)
        self.devices.give(name)
        return Ended(name, status, now - self._since.pop(name, now))

    def _without_server(self) -> list[Ended]:
        lines = ledger.last_lines(self._log)
        said = "".join(lines).strip()
        self.lost = "the process that jobs are forked from has ended; the same command goes on" + (
            f" ({said})" if said else ""
        )
        self._selector.unregister(self._server.stdout)  # type: ignore[arg-type]
        self.signal(signal.SIGKILL)
        ended = [self._gone(name, -int(signal.SIGKILL)) for name in sorted(self._running)]
        self._groups.clear()
        return ended

    def signal(self, number: int) -> None:
        """Send every job's group a signal; before the server is ready there are none but it.

        SIGKILL ends the server, too: one that is frozen would not tell of any end.
        """
        self._signal = number
        for group in self._groups.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)
        if not self.lost and (number == signal.SIGKILL or not self._ready):
            self._server.kill()


def _written(job: Job) -> float:
    """When a job has last noted an epoch, also in an earlier attempt; 0: never."""
    try:
        return RunFolder(job.folder).metrics.stat().st_mtime
    except OSError:
        return 0.0

"""The jobs' processes, as the sweep sees them: started, told to stop, ended."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from resnet_lab.sweep.grid import Job

SERVER = Path(__file__).with_name("server.py")

# What a launcher of ranks leaves in the environment; a job must find none of it.
RANKS = ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED", "TORCHELASTIC_RUN_ID")


class Processes:
    """Starts jobs from the warm server (`server.py`), each in a process group of its own.

    A context manager: leaving it ends the server and whatever still runs.

    Args:
        script: what a job runs, such as train.py.
        preload: modules that the server imports before the first job.
        warm: False starts a bare Python for each job.
        grace_seconds: from being told to stop to being killed, when the sweep itself is gone.
        log: where the server's own output goes.
        keep: a file descriptor that stays open as long as any of the processes lives.
    """

    def __init__(
        self,
        script: Path,
        preload: Sequence[str],
        warm: bool,
        grace_seconds: float,
        log: Path,
        keep: int,
    ) -> None:
        self.log = log
        self._warm = warm
        self._groups: dict[str, int] = {}  # job -> its process group
        self._since: dict[str, float] = {}  # job -> when its process came to life
        self._asked: set[str] = set()  # jobs that have not ended
        self._unread = b""
        self._ready = False
        self._told: int | None = None  # the last signal sent to all
        self._gone = False
        modules = preload if warm else ()
        with log.open("w") as output:
            self._server = subprocess.Popen(
                [sys.executable, "-P", SERVER, str(grace_seconds), script, *modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                pass_fds=(keep,),
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which decides
            )
        assert self._server.stdout is not None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server.stdout, selectors.EVENT_READ)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._server.stdin.close()  # tells the server to stop the jobs and leave
        self._server.wait()
        self._selector.close()
        self._server.stdout.close()

    def takes_up(self, job: Job) -> bool:
        """Never: what is left of an earlier sweep ends with it."""
        return False

    def start(
        self, job: Job, arguments: list[str], log: Path, gpus: list[str], threads: int | None
    ) -> None:
        """Run the script with `arguments` in a fresh process; its output is appended to `log`."""
        environment = {k: v for k, v in os.environ.items() if k not in (*RANKS, *RENDEZVOUS)}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        if "OMP_NUM_THREADS" in environment:
            threads = None  # the user has said it
        elif threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        request = {
            "job": job.name,
            "arguments": arguments,
            "env": environment,
            "log": str(log.absolute()),
            "threads": threads,
            "warm": self._warm,
        }
        self._asked.add(job.name)
        assert self._server.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `ended` will tell
            self._server.stdin.write(json.dumps(request).encode() + b"\n")
            self._server.stdin.flush()

    def ended(self, timeout: float) -> list[tuple[str, int, float]]:
        """Jobs that are gone, their exit statuses (below 0: the signal) and seconds of life.

        Waits for news at most `timeout` seconds. Where the server itself is gone (`lost`), the
        jobs are killed and given as such.
        """
        assert self._server.stdout is not None
        if self._gone or not self._selector.select(timeout):
            return []
        received = os.read(self._server.stdout.fileno(), 65536)
        if not received:
            return self._without_server()
        *lines, self._unread = (self._unread + received).split(b"\n")
        ended = []
        for answer in map(json.loads, lines):
            if "ready" in answer:
                self._ready = True
            elif "pid" in answer:
                self._groups[answer["job"]] = answer["pid"]
                self._since[answer["job"]] = time.monotonic()
                if self._told is not None:  # while this one was being started
                    self.signal(self._told)
            else:
                self._groups.pop(answer["job"], None)
                self._asked.discard(answer["job"])
                ended.append((answer["job"], answer["status"], self._age(answer["job"])))
        return ended

    def _age(self, job: str) -> float:
        now = time.monotonic()
        return now - self._since.pop(job, now)

    def _without_server(self) -> list[tuple[str, int, float]]:
        self._gone = True
        self._selector.unregister(self._server.stdout)  # type: ignore[arg-type]
        self.signal(signal.SIGKILL)
        ended = [(job, -int(signal.SIGKILL), self._age(job)) for job in sorted(self._asked)]
        self._asked.clear()
        self._groups.clear()
        return ended

    @property
    def lost(self) -> bool:
        """Whether the server is gone, so that nothing can be started any more."""
        return self._gone

    def signal(self, number: int) -> None:
        """Send every job's group a signal; before the server is ready there are none but it."""
        self._told = number
        if not self._ready and not self._gone:
            self._server.kill()
        for group in self._groups.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)

"""The warm process that every job of a sweep is forked from; run as a script, never imported.

    python -P server.py GRACE_SECONDS SCRIPT MODULE...

It imports the modules once, then forks a child for each request and becomes, in the child, what
`python SCRIPT ARGUMENTS` would be: `__main__` is the script, sys.argv its command line, so that
what replays the command line (Lightning, for the other processes of a run) gets the single run.

Requests are lines on stdin: {"job", "arguments", "env", "log", "threads", "warm"}. Answers are
lines on stdout: {"ready"}, {"job", "pid"} at the start of a job (its process group has the same
number), {"job", "status"} when it is gone. When stdin ends, because the sweep is done or was
killed, all jobs are told to stop and after GRACE_SECONDS are killed.

Forking is sound only in a process without threads, and CUDA must not have been touched.
"""

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import runpy
import selectors
import signal
import sys
import time
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def serve(grace_seconds: float, modules: list[str]) -> dict[str, Any] | None:
    """Fork children on request. Returns None at the end, and in a child its request."""
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever the modules print must not look like an answer
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    def answer(**content: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the sweep was killed
            os.write(answers, json.dumps(content).encode() + b"\n")

    for module in modules:
        importlib.import_module(module)
    answer(ready=True)

    running: dict[int, str] = {}  # process -> job
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(wake_read, selectors.EVENT_READ)
    unread, ending, deadline = b"", False, float("inf")
    while running or not ending:
        wait = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        ready = {key.fd for key, _ in selector.select(wait)}
        if wake_read in ready:
            os.read(wake_read, 4096)
        for process, status in _gone(running):
            answer(job=running.pop(process), status=status)
        if 0 in ready:
            received = os.read(0, 65536)
            *lines, unread = (unread + received).split(b"\n")
            for line in lines:
                request = json.loads(line)
                process = os.fork()
                if process == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for descriptor in (answers, wake_read, wake_write):
                        os.close(descriptor)
                    selector.close()
                    child: dict[str, Any] = request
                    return child
                running[process] = request["job"]
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.setpgid(process, process)  # also here: a signal may be sent at once
                answer(job=request["job"], pid=process)
            if not received:
                selector.unregister(0)
                _signal(running, signal.SIGTERM)
                ending, deadline = True, time.monotonic() + grace_seconds
        if time.monotonic() > deadline:
            _signal(running, signal.SIGKILL)
            deadline = float("inf")
    return None


def _gone(running: dict[int, str]) -> list[tuple[int, int]]:
    """The children that have ended and how; what they left of their group ends with them."""
    gone = []
    for process in running:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            _signal({process: ""}, signal.SIGKILL)
            gone.append((process, os.waitstatus_to_exitcode(status)))
    return gone


def _signal(running: dict[int, str], number: int) -> None:
    for process in running:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process, number)


def become(request: dict[str, Any], server: int, script: str) -> None:
    """Turn this fresh child into the job, up to the running of the script."""
    os.setpgid(0, 0)
    with contextlib.suppress(OSError, AttributeError):  # Linux: die with the server
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != server:
        os._exit(128 + signal.SIGTERM)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    os.environ.clear()
    os.environ.update(request["env"])
    if not request["warm"]:
        os.execv(sys.executable, [sys.executable, "-u", script, *request["arguments"]])
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if request["threads"] is not None and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(request["threads"])
    sys.argv = [os.path.relpath(script), *request["arguments"]]  # as one would type it
    sys.path.insert(0, os.path.dirname(script))


def leave() -> None:
    """The last thing at exit: skips the freeing of all modules, which takes torch two seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_status)


exit_status = 1

if __name__ == "__main__":
    atexit.register(leave)  # first of all, so that it comes after what the modules register
    this, path = os.getpid(), sys.argv[2]
    wish = serve(float(sys.argv[1]), sys.argv[3:])
    if wish is not None:
        become(wish, this, path)
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            # As Python does: a number is the status, and a message means 1.
            exit_status = end.code if isinstance(end.code, int) else int(end.code is not None)
            raise
    exit_status = 0

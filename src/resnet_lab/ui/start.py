"""`resnet-lab ui`: find a port, say where the page is, serve until Ctrl-C."""

import contextlib
import errno
import os
import signal
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_lab.config.errors import UserError
from resnet_lab.screen import console
from resnet_lab.ui.server import Server
from resnet_lab.ui.views import Views

TRIES = 20  # ports after the usual one


def serve(folders: Sequence[Path], port: int | None, usual: int, browser: bool) -> None:
    """Serve the page of these folders until Ctrl-C or SIGTERM.

    Args:
        port: the one to take; None: `usual`, or the next that is free.

    Raises:
        UserError: a folder is not there, or the port is in use.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; name one that holds runs or sweeps.")
    server = _bound(Views(folders), port, usual)
    with server, contextlib.suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, _interrupt)
        console.print(f"page        {server.guard.address}", soft_wrap=True)
        console.print(
            "Only this machine, and who has this address, can open it. Ctrl-C ends it; what "
            "trains goes on.",
            soft_wrap=True,
        )
        if "SSH_CONNECTION" in os.environ:
            port = server.guard.port
            console.print(f"From your own machine: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE")
        if browser and _has_screen():
            address = server.guard.address_for_once
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        server.serve_forever()


def _bound(views: Views, port: int | None, usual: int) -> Server:
    candidates = [port] if port is not None else [*range(usual, usual + TRIES)]
    for candidate in candidates:
        if not 0 <= candidate < 2**16:
            raise UserError(f"--port {candidate}: a port is from 1 to 65535.")
        try:
            return Server(views, candidate)
        except PermissionError:
            raise UserError(
                f"--port {candidate}: ports below 1024 are the system's; name a higher one."
            ) from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    named = f"Port {port} is" if port is not None else f"Ports {usual} to {candidates[-1]} are"
    raise UserError(f"{named} in use; name another with --port.")


def _has_screen() -> bool:
    """Whether a browser has a window to open; else one for terminals would take this one."""
    if sys.platform in ("win32", "darwin"):
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt

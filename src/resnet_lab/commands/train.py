"""Train one net, or several with -m; the same as train.py."""

import runpy
import sys
from collections.abc import Sequence

from resnet_lab.config.compose import APP


def train(arguments: Sequence[str]) -> None:
    """Run train.py, of the checkout or as it was shipped with the package, as Python would.

    It becomes `__main__` and the first word of `sys.argv`: by these Lightning starts its other
    processes, and a sweep its jobs.

    Args:
        arguments: the command line of train.py.
    """
    script = str(APP / "train.py")
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(APP))  # as for every script that Python runs
    runpy.run_path(script, run_name="__main__")

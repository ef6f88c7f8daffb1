"""Optuna as a search and its trials use it; Optuna itself is imported when it is asked for."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from resnet_lab.config.errors import UserError

STORAGE = "RESNET_LAB_STUDY_STORAGE"  # environment variable: the database of a search
SAMPLERS = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "gp": "GPSampler",
    "nsgaii": "NSGAIISampler",
}
PRUNERS = {"none": "NopPruner", "median": "MedianPruner", "hyperband": "HyperbandPruner"}


def sampler(name: str, options: Mapping[str, Any], seed: int) -> Any:
    """Optuna's sampler of that name. ValueError where it does not take these options."""
    from optuna import samplers

    # Trials that run side by side must not all be sent to the same place.
    own = {"constant_liar": True} if name == "tpe" else {}
    return _made(samplers, SAMPLERS[name], "sampler", {**own, **options, "seed": seed})


def pruner(name: str, options: Mapping[str, Any], epochs: int | None) -> Any:
    """Optuna's pruner of that name; `epochs` are those of a whole run, where they are known."""
    from optuna import pruners

    own = {"max_resource": epochs} if name == "hyperband" and epochs else {}
    return _made(pruners, PRUNERS[name], "pruner", {**own, **options})


def _made(module: Any, name: str, kind: str, options: dict[str, Any]) -> Any:
    try:
        with quiet():
            return getattr(module, name)(**options)
    except (TypeError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"hydra.sweeper.{kind}: {reason}; see optuna's {name}.") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Optuna tells of every study, and that parts of it are experimental; we need neither."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)

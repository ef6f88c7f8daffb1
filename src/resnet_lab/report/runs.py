"""Run folders and sweep folders, read from disk alone; imports no torch."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from resnet_lab.config.errors import UserError
from resnet_lab.config.rules import spelled
from resnet_lab.config.untrusted import parse_yaml, read_yaml
from resnet_lab.files import printable, read_json, read_rows, read_text
from resnet_lab.run.folder import RunFolder, SweepFolder

FIGURES = ("val/loss", "val/acc", "test/loss", "test/acc", "params", "macs", "train_seconds")
UNKNOWN = "?"  # the value of a key that a damaged or unborn run does not tell


@dataclass
class Run:
    """One job: what was asked for, what came out, and how it ended.

    `state` is finished, pruned, failed, interrupted, paused, running, waiting, fast_dev_run, or:
    unreadable (a damaged result.json), missing (no result.json where there must be one). `reason`
    is a sentence on every state but finished. `settings` are the values of the study's keys, as
    one types them.
    """

    name: str
    folder: Path
    state: str
    reason: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)


@dataclass
class Study:
    """The runs of one report.

    `keys` are the dotted config keys that vary, `values` theirs in the order of the sweep, `notes`
    sentences on what could not be read. `folder` is None unless a single run or sweep was named.
    `search` is what sweep.json says of a search: its space, objectives and how it chooses.
    """

    name: str
    folder: Path | None
    commands: list[str]
    keys: list[str]
    runs: list[Run]
    notes: list[str]
    search: dict[str, Any] | None = None

    @property
    def values(self) -> dict[str, list[str]]:
        return {key: list(dict.fromkeys(r.settings[key] for r in self.runs)) for key in self.keys}

    @property
    def factors(self) -> list[str]:
        """What varies, repeats over seeds apart."""
        return [key for key in self.keys if key != "seed"]

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.state == "finished"]

    def short(self, key: str) -> str:
        """The last part of a dotted key, unless another key ends in it too."""
        last = key.rpartition(".")[2]
        return key if sum(k.rpartition(".")[2] == last for k in self.keys) > 1 else last


def read(paths: Sequence[Path]) -> Study:
    """The study of a sweep folder, of run folders, or of several of either.

    ValueError where a path is neither a run nor a sweep, or where nothing in them can be read.
    """
    runs: dict[Path, Run] = {}
    commands: list[str] = []
    keys: list[str] = []
    notes: list[str] = []
    search = None
    for path in paths:
        if is_sweep(path):
            sweep, note = _sweep_json(path)
            notes += [note] if note else []
            found = _jobs(path, sweep)
            if not found:
                raise UserError(f"{path} is an empty sweep: there is no job in it to report on.")
            keys += [key for key in sweep.get("keys", []) if key not in keys]
            commands += [sweep["command"]] if sweep.get("command") else []
            search = sweep.get("search") if len(paths) == 1 else None
        elif is_run(path):
            found = [_run(path)]
        else:
            raise UserError(
                f"{path} is no run and no sweep: name a folder that holds a result.json or a "
                "sweep.json, such as outputs/sweeps/NAME, or several run folders."
            )
        runs |= {run.folder.resolve(): run for run in found}
    chosen = list(runs.values())
    if all(run.state in ("unreadable", "missing", "waiting") for run in chosen):
        reasons = "; ".join(f"{run.name}: {run.reason}" for run in chosen[:3])
        raise UserError(f"There is no run to report on yet ({reasons}).")
    if keys and len(paths) == 1:
        _settle(chosen, keys)
        if search is not None:
            for run in chosen:
                run.settings = {key: _rounded(value) for key, value in run.settings.items()}
    else:
        keys = _varied(chosen)
        _settle(chosen, keys)
        # Nobody gave them an order: 8 before 16, resnet20 before resnet110.
        chosen.sort(key=lambda run: [_natural(run.settings[key]) for key in keys])
    if len(paths) > 1 or not commands:
        commands += [run.result["command"] for run in chosen if "command" in run.result]
    for run in chosen:
        lost = epochs(run.folder)[1] if run.state == "finished" else 0
        if lost:
            notes.append(f"{run.name}: {lost} damaged line(s) of metrics.csv are left out.")
    single = paths[0] if len(paths) == 1 else None
    name = single.resolve().name if single else f"{len(chosen)} runs"
    return Study(name, single, list(dict.fromkeys(commands)), keys, chosen, notes, search)


def is_sweep(path: Path) -> bool:
    return SweepFolder(path).record.is_file()


def is_run(path: Path) -> bool:
    return RunFolder(path).result.is_file() or (path / ".hydra").is_dir()


def epochs(folder: Path) -> tuple[dict[int, dict[str, float]], int]:
    """The rows of metrics.csv by epoch, and how many of its lines cannot be read.

    An epoch that was trained twice (once before an interruption, once after) counts as it was
    the last time. The line that a running job is just writing is no damage until it is whole.
    """
    rows: dict[int, dict[str, float]] = {}
    lost = 0
    for row in _rows(RunFolder(folder).metrics):  # none, where no epoch was finished
        try:
            numbers = {key: float(value) for key, value in row.items() if value}
            rows[int(numbers["epoch"])] = numbers
        except (KeyError, ValueError):
            lost += 1
    return rows, lost


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        return read_rows(path)
    except (OSError, ValueError):
        return []


def gradients(folder: Path) -> dict[int, list[tuple[str, float]]]:
    """grad_norm.csv by epoch: stage and gradient norm of every block, from input to output.

    Epoch 0 is before training. Empty where the run has measured none; lines that cannot be read
    are left out.
    """
    found: dict[int, list[tuple[str, float]]] = {}
    for row in _rows(RunFolder(folder).gradients):
        try:
            epoch, norm = int(row["epoch"]), float(row["norm"])
        except (KeyError, ValueError):
            continue
        found.setdefault(epoch, []).append((row["stage"], norm))
    return found


# ------------------------------------------------------------------ sweeps


def _sweep_json(folder: Path) -> tuple[dict[str, Any], str]:
    """What sweep.json holds, or nothing and a sentence on why."""
    try:
        sweep = read_json(SweepFolder(folder).record)
        whole = isinstance(sweep["jobs"], list) and isinstance(sweep["keys"], list)
        if whole and all(isinstance(job["folder"], str) for job in sweep["jobs"]):
            return sweep, ""
        fault = "it does not list its jobs"
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = _one_line(error)
    return {}, (
        f"{folder / 'sweep.json'} cannot be read ({fault}); the report covers the run folders "
        "that lie beside it, jobs that had not begun are not in it."
    )


def _jobs(folder: Path, sweep: dict[str, Any]) -> list[Run]:
    """The jobs that sweep.json lists, and runs that lie there without being listed."""
    # By name, so that a sweep that was moved is still whole.
    listed = {folder / Path(job["folder"]).name: job for job in sweep.get("jobs", [])}
    others = [path for path in sorted(folder.iterdir()) if path not in listed and is_run(path)]
    return [_run(path, job) for path, job in listed.items()] + [_run(path) for path in others]


def _run(folder: Path, job: dict[str, Any] | None = None) -> Run:
    """`job` is what sweep.json says of it; what the folder says counts for more."""
    run = Run(printable(folder.resolve().name), folder, "missing")
    run.settings = _typed(job.get("overrides") or []) if job else _typed_in(folder)
    result = RunFolder(folder).result
    try:
        run.result = _figures_checked(read_json(result))
        run.state = run.result["status"]
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        run.state, run.reason = "unreadable", f"result.json cannot be read ({_one_line(error)})"
        return run
    if run.state not in ("finished", "fast_dev_run"):
        told = (job or {}).get("state", "finished")
        run.state = run.state if told == "finished" else told
    run.reason = _reason(run, job or {})
    return run


def _figures_checked(result: Any) -> dict[str, Any]:
    if not isinstance(result, dict) or not isinstance(result.get("status"), str):
        raise ValueError("it does not hold the result of a run")
    for key in FIGURES:
        if not isinstance(result.get(key, 0), int | float):
            raise ValueError(f"{key} is {result[key]!r}, not a number")
    return result


def _reason(run: Run, job: dict[str, Any]) -> str:
    """Why this run has no final figures; nothing for one that has."""
    if run.state == "finished":
        return ""
    if run.state == "pruned":
        if job.get("error"):  # by halving, which says where
            return _one_line(job["error"])
        rows = epochs(run.folder)[0]
        return f"hopeless beside the other trials after {_epochs(max(rows, default=0))}"
    if run.state == "waiting":
        return "not started yet"
    if run.state == "fast_dev_run":
        return "a trial of a few batches (trainer.fast_dev_run), whose figures say nothing"
    if run.state == "missing" and job:
        return "sweep.json says finished, but there is no result.json"
    if run.state == "missing":
        return "there is no result.json: it ended, or was stopped, before training began"
    said = _one_line(job.get("error") or run.result.get("error") or "")
    done = max(epochs(run.folder)[0], default=0)
    progress = f"{_epochs(done)} done"
    if run.state == "running":
        return f"{progress}, {_last_written(run.folder)}"
    return f"{said or 'no reason is recorded'} ({progress})"


def _epochs(n: int) -> str:
    return f"{n} epoch{'' if n == 1 else 's'}"


def _last_written(folder: Path) -> str:
    files = (folder / name for name in ("metrics.csv", "result.json", "run.log"))
    times = [path.stat().st_mtime for path in files if path.is_file()]
    if not times:
        return "nothing written yet"
    return f"last heard of {datetime.fromtimestamp(max(times), UTC):%Y-%m-%d %H:%M} UTC"


def _one_line(error: object, most: int = 300) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= most else text[: most - 3] + "..."


# ------------------------------------------------------------------ what varies


def _typed(overrides: Iterable[str]) -> dict[str, str]:
    """What was typed, by key; not where the run should lie."""
    pairs = (override.lstrip("+~").partition("=")[::2] for override in overrides)
    return {key: value.strip("'\"") for key, value in pairs if not _is_place(key)}


def _typed_in(folder: Path) -> dict[str, str]:
    found = _yaml(folder / ".hydra" / "overrides.yaml")
    return _typed(map(str, found)) if isinstance(found, list) else {}


def _settle(runs: list[Run], keys: list[str]) -> None:
    """Leave each run the values of `keys` alone, those it did not type from its config."""
    for run in runs:
        if any(key not in run.settings for key in keys):
            run.settings = {**_configured(run), **run.settings}
        run.settings = {key: run.settings.get(key, UNKNOWN) for key in keys}


def _rounded(value: str) -> str:
    """What a search draws has sixteen digits, which nobody reads."""
    try:
        return value if value.lstrip("-").isdigit() else f"{float(value):.4g}"
    except ValueError:
        return value


def _varied(runs: list[Run]) -> list[str]:
    """The keys that tell these runs apart.

    One choice may change many keys (`optimizer=adam` its betas, `seed` data.seed). So first come
    the keys that somebody typed, then group choices, then the rest, and of what was not typed a
    key is taken only where it differs between runs that all keys before it leave alike.
    """
    settings = {}
    for run in runs:
        configured = _configured(run)
        if configured:  # a run that left nothing tells nothing apart
            settings[run.folder] = {**configured, **run.settings}
    typed = list(dict.fromkeys(key for run in runs for key in run.settings))
    names = list(dict.fromkeys(key for values in settings.values() for key in values))
    varying = [
        key
        for key in (*typed, *sorted(set(names) - set(typed), key=names.index))
        if len({values.get(key) for values in settings.values()}) > 1
    ]
    kept: list[str] = []
    for key in varying:
        before = {tuple(values.get(k) for k in kept) for values in settings.values()}
        after = {tuple(values.get(k) for k in (*kept, key)) for values in settings.values()}
        if key in typed or len(after) > len(before):
            kept.append(key)
    return kept


def _natural(value: str) -> list[tuple[int, float, str]]:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if isfinite(number):
        return [(0, number, "")]
    parts = re.split(r"(\d+)", value)
    return [(1, float(part), "") if part.isdigit() else (2, 0.0, part) for part in parts]


def _configured(run: Run) -> dict[str, str]:
    """Every group choice and config key of a run, but for where things lie."""
    config = _yaml(RunFolder(run.folder).config)
    if not isinstance(config, dict):
        return {}
    place = str(config.get("run_dir", run.folder))
    choices: dict[str, Any] = {
        key: run.result[key] for key in ("model", "data") if key in run.result
    }
    choices |= _choices(run.folder / ".hydra" / "hydra.yaml")
    flat = {key: value for key, value in _flat(config) if place not in value and not _is_place(key)}
    return {key: str(value) for key, value in choices.items()} | flat


def _choices(path: Path) -> dict[str, Any]:
    """The group choices that Hydra keeps; only their lines are parsed, the file is long."""
    try:
        match = re.search(r"^    choices:\n((?: {6}.*\n)+)", read_text(path), re.MULTILINE)
        choices = parse_yaml(match[1]) if match else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {key: value for key, value in choices.items() if not str(key).startswith("hydra")}


def _is_place(key: str) -> bool:
    return key.split(".")[0] in ("hydra", "sweep", "run_dir", "resume", "trust", "reference")


def _flat(node: Any, key: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(node, dict):
        for name, child in node.items():
            yield from _flat(child, f"{key}.{name}" if key else str(name))
    else:
        yield key, spelled(node)


def _yaml(path: Path) -> Any:
    try:
        return read_yaml(path)
    except (OSError, UserError):
        return None


# ------------------------------------------------------------------ references


@dataclass(frozen=True)
class Reference:
    """A published test accuracy in percent, and where it stands."""

    test_acc: float
    source: str


def reference(run: Run) -> Reference | None:
    """What the run's `reference` names: in result.json, or at the top of config.yaml.

    A number is a test error in percent, as papers give it. A mapping holds test_error or test_acc
    in percent, and perhaps a source. Where it names the data that it holds for, it says nothing
    about a run on other data.

    Raises:
        UserError: it is anything else.
    """
    found = run.result.get("reference")
    if found is None:
        found = _configured_reference(RunFolder(run.folder).config)
    if found is None:
        return None
    content = found if isinstance(found, dict) else {"test_error": found}
    if "data" in content and content["data"] != run.result.get("data"):
        return None
    accuracy, error = content.get("test_acc"), content.get("test_error")
    if isinstance(accuracy, int | float):
        return Reference(accuracy, str(content.get("source", "")))
    if isinstance(error, int | float):
        return Reference(100 - error, str(content.get("source", "")))
    raise UserError(
        f"{run.name}: reference={found} is not understood; it may be a test error in percent, or "
        "a mapping with test_error or test_acc, and source."
    )


def _configured_reference(path: Path) -> Any:
    """Its lines alone are parsed: a report may be of a thousand runs."""
    try:
        match = re.search(r"^reference:.*\n?(?:[ -].*\n?)*", read_text(path), re.MULTILINE)
        return parse_yaml(match[0])["reference"] if match else None
    except (OSError, ValueError, yaml.YAMLError):
        return None

"""Run folders and sweep folders, read from disk alone; imports no torch."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from resnet_lab.config.errors import UserError
from resnet_lab.config.rules import spelled
from resnet_lab.config.untrusted import parse_yaml, read_yaml
from resnet_lab.files import printable, read_json, read_rows, read_text
from resnet_lab.run.folder import RunFolder, SweepFolder
from resnet_lab.run.state import State

FIGURES = ("val/loss", "val/acc", "test/loss", "test/acc", "params", "macs", "train_seconds")
COMPOSED = ("class_names", "versions", "test/acc_per_class", "reference")
UNKNOWN = "?"  # the value of a key that a run does not tell; equal to no other
FINISHED = (State.FINISHED, "fast_dev_run")
DEEPEST = 3  # folders below a path in which runs are looked for

# Keys that say where a run lies and how it is started.
PLACES = ("hydra", "sweep", "run_dir", "resume", "trust", "reference")
# Keys that cannot change the outcome of a run are no factors, nor what lies below them.
NO_FACTORS = (
    *(*PLACES, "logger", "compile", "cuda_graph"),
    *("data.root", "data.cache_dir", "data.workers", "data.worker_timeout", "data.memory_limit"),
    *("data.check", "data.on_bad_image", "data.source"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps"),
    *("trainer.enable_checkpointing", "trainer.profiler", "trainer.accelerator"),
)
# Callbacks that only watch, as choices of the group.
WATCHING = frozenset(
    [
        *("best", "last", "default", "checkpoints", "nan_guard", "epoch_log", "compile_net"),
        "cuda_graph",
        *("live_bar", "pictures", "confusion_matrix", "learning_curves", "grad_norm"),
        *("sample_grid", "wrong_images", "none", "null", "prune"),
    ]
)


@dataclass
class Run:
    """One job: its settings, its figures, and how it ended.

    Attributes:
        state: a `State`, or fast_dev_run, unreadable (a damaged result.json), or missing (no
            result.json where there must be one).
        reason: a sentence on every state but finished.
        settings: the values of the study's keys, as one types them.
        sweep: the sweep that it belongs to.
        swept: the keys that this sweep varies.
        memo: what others have worked out from its files, to be kept with it.
    """

    name: str
    folder: Path
    state: str
    reason: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    sweep: Path | None = None
    swept: Sequence[str] = ()
    memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What config.yaml holds; nothing where it is missing or damaged."""
        config = _yaml(RunFolder(self.folder).config)
        return config if isinstance(config, dict) else {}

    @cached_property
    def choices(self) -> dict[str, Any]:
        """The choice of every config group; nothing where Hydra has left none."""
        return _choices(self.folder / ".hydra" / "hydra.yaml")

    @cached_property
    def labels(self) -> tuple[list[str], str]:
        """The tags and the note that people have given it."""
        return RunFolder(self.folder).read_labels()

    @cached_property
    def rows(self) -> dict[int, dict[str, float]]:
        """metrics.csv by epoch; see `epochs`."""
        return epochs(self.folder)[0]


@dataclass
class Study:
    """Runs on the same data.

    Attributes:
        keys: the dotted config keys that vary.
        notes: sentences on what could not be read.
        search: of a search, what sweep.json holds: its space, objectives and how it chooses.
        data: the data in words.
    """

    name: str
    commands: list[str]
    keys: list[str]
    runs: list[Run]
    notes: list[str] = field(default_factory=list)
    search: dict[str, Any] | None = None
    data: str = ""

    @property
    def values(self) -> dict[str, list[str]]:
        """The values of each key, in the order of the runs."""
        return {key: list(dict.fromkeys(r.settings[key] for r in self.runs)) for key in self.keys}

    @property
    def factors(self) -> list[str]:
        """The keys, repeats over seeds apart."""
        return [key for key in self.keys if key != "seed"]

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.state == State.FINISHED]

    def short(self, key: str) -> str:
        """The last part of a dotted key, unless another key ends in it too."""
        last = key.rpartition(".")[2]
        return key if sum(k.rpartition(".")[2] == last for k in self.keys) > 1 else last


def read(paths: Sequence[Path]) -> list[Study]:
    """The runs of sweep folders, run folders, or folders above them: a study for each data set.

    Raises:
        UserError: no run is in a path, or none of them can be read.
    """
    runs: dict[Path, Run] = {}
    commands: list[str] = []
    keys: list[str] = []
    notes: list[str] = []
    found = list(dict.fromkeys(place for path in paths for place in _places(path)))
    search = None
    for path in found:
        if is_sweep(path):
            sweep, note = read_sweep(path)
            notes += [note] if note else []
            jobs = _jobs(path, sweep)
            if not jobs and len(found) == 1:
                raise UserError(f"{path} is an empty sweep: there is no job in it to report on.")
            keys += [key for key in sweep.get("keys", []) if key not in keys]
            commands += [sweep["command"]] if sweep.get("command") else []
            search = sweep.get("search") if len(found) == 1 else None
        else:
            jobs = [read_run(path)]
        runs |= {run.folder.resolve(): run for run in jobs}
    chosen = list(runs.values())
    if all(run.state in ("unreadable", "missing", State.WAITING) for run in chosen):
        reasons = "; ".join(f"{run.name}: {run.reason}" for run in chosen[:3])
        raise UserError(f"There is no run to report on yet ({reasons}).")
    if len(found) > 1 or not commands:
        commands += [run.result["command"] for run in chosen if "command" in run.result]
    for run in chosen:
        lost = epochs(run.folder)[1] if run.state == State.FINISHED else 0
        if lost:
            notes.append(f"{run.name}: {lost} damaged line(s) of metrics.csv are left out.")
    name = found[0].resolve().name if len(found) == 1 else f"{len(chosen)} runs"
    studies = []
    for data, group in _by_data(chosen).items():
        own = list(keys) if keys and len(found) == 1 else []
        if own:
            _settle(group, own)
            if search is not None:
                for run in group:
                    run.settings = {key: _rounded(value) for key, value in run.settings.items()}
        else:
            own = _varied(group)
            _settle(group, own)
            # Nobody gave them an order: 8 before 16, resnet20 before resnet110.
            group.sort(key=lambda run: [_natural(run.settings[key]) for key in own])
        studies.append(Study(name, [], own, group, [], search, data))
    studies[0].commands, studies[0].notes = list(dict.fromkeys(commands)), notes
    return studies


def _places(path: Path) -> list[Path]:
    """The sweeps and runs that a path names: itself, or those below it."""
    if is_sweep(path) or is_run(path):
        return [path]
    found: list[Path] = []
    level = [path] if path.is_dir() else []
    for _ in range(DEEPEST):
        below = [
            folder
            for parent in level
            for folder in sorted(parent.iterdir())
            if folder.is_dir() and not folder.is_symlink()
        ]
        found += [folder for folder in below if is_sweep(folder) or is_run(folder)]
        level = [folder for folder in below if folder not in found]
    if not found:
        raise UserError(
            f"{path} is no run and no sweep: name a folder that holds a result.json or a "
            "sweep.json, such as outputs/sweeps/NAME, or several run folders."
        )
    return found


def _by_data(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs whose figures can be compared: on the same images, classes and splits.

    A run that has not told its data belongs to those of its sweep, else to the first.
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    silent = []
    for run in runs:
        if not run.result.get("data"):
            silent.append(run)
            continue
        groups.setdefault(_data_key(run), []).append(run)
    for key in list(groups):  # not tested yet: with those that are, if all else agrees
        if None not in key:
            continue
        alike = [
            other
            for other in groups
            if other != key and all(a in (b, None) for a, b in zip(key, other, strict=True))
        ]
        if alike:
            groups[alike[0]] += groups.pop(key)
    for run in silent:
        sweep = [group for group in groups.values() if group[0].sweep == run.sweep]
        (sweep or list(groups.values()) or [groups.setdefault(("?",), [])])[0].append(run)
    order = {run.folder: n for n, run in enumerate(runs)}
    named: dict[str, list[Run]] = {}
    for key, group in groups.items():
        group.sort(key=lambda run: order[run.folder])
        text = _data_in_words(key)
        named[text if text not in named else f"{text} ({len(named) + 1})"] = group
    return named


def _data_key(run: Run) -> tuple[Any, ...]:
    result, typed = run.result, run.settings.get("data.root")
    if typed is None:
        data = run.config.get("data")
        typed = data.get("root") if isinstance(data, dict) else None
    names = result.get("class_names")
    counts = (result.get(f"n_{split}") or None for split in ("val", "test"))
    classes = tuple(map(str, names)) if isinstance(names, list) else ()
    folder = Path(str(typed)).name if typed else ""
    done = run.state == State.FINISHED
    return (str(result["data"]), folder, classes, *(n if done else None for n in counts))


def _data_in_words(key: tuple[Any, ...]) -> str:
    if len(key) < 5:
        return "unknown data"
    data, folder, classes, n_val, n_test = key
    parts = [f"{data} ({folder})" if folder else data]
    parts += [f"{len(classes)} classes"] if classes else []
    parts += [
        f"{n:,} {split} images" for n, split in ((n_val, "validation"), (n_test, "test")) if n
    ]
    return printable(", ".join(parts))


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
            rows[int(numbers["epoch"])] = {k: v for k, v in numbers.items() if isfinite(v)}
        except (KeyError, ValueError, OverflowError):
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


def read_sweep(folder: Path) -> tuple[dict[str, Any], str]:
    """What sweep.json holds, or nothing and a sentence on why."""
    try:
        sweep = read_json(SweepFolder(folder).record)
        if _texts(sweep["keys"]) and isinstance(sweep["jobs"], list):
            jobs = sweep["jobs"]
            if all(isinstance(j["folder"], str) and _texts(j.get("overrides", [])) for j in jobs):
                return sweep, ""
        fault = "it does not list its jobs"
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = _one_line(error)
    return {}, (
        f"{folder / 'sweep.json'} cannot be read ({fault}); the report covers the run folders "
        "that lie beside it, jobs that had not begun are not in it."
    )


def _texts(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(text, str) for text in content)


def _jobs(folder: Path, sweep: dict[str, Any]) -> list[Run]:
    """The jobs that sweep.json lists, and runs that lie there without being listed."""
    jobs = [read_run(path, job) for path, job in job_folders(folder, sweep).items()]
    for run in jobs:
        run.sweep = folder
    return jobs


def job_folders(folder: Path, sweep: dict[str, Any]) -> dict[Path, dict[str, Any] | None]:
    """The folders of a sweep's jobs with their entries in sweep.json, None for those without."""
    # By name, so that a sweep that was moved is still whole.
    jobs = {Path(job["folder"]).name: job for job in sweep.get("jobs", [])}
    listed = {folder / name: job for name, job in jobs.items() if name not in ("", "..")}
    others = [path for path in sorted(folder.iterdir()) if path not in listed and is_run(path)]
    return {**listed, **dict.fromkeys(others)}


def read_run(folder: Path, job: dict[str, Any] | None = None) -> Run:
    """A run by its folder, else by its entry in sweep.json."""
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
    if run.state not in FINISHED:
        listed = (job or {}).get("state", State.FINISHED)
        run.state = run.state if listed == State.FINISHED else listed
    run.reason = _reason(run, job or {})
    return run


def _figures_checked(result: Any) -> dict[str, Any]:
    if not isinstance(result, dict) or not isinstance(result.get("status"), str):
        raise ValueError("it does not hold the result of a run")
    for key, value in result.items():
        if isinstance(value, list | dict) and key not in COMPOSED:
            raise ValueError(f"{key} is {value!r}, not a word or a number")
    for key in FIGURES:
        figure = result.get(key, 0)
        if not isinstance(figure, int | float) or abs(figure) == float("inf"):
            raise ValueError(f"{key} is {figure!r}, not a number")
        if key.endswith("/acc") and not 0 <= figure <= 1:
            raise ValueError(f"{key} is {figure!r}, and not from 0 to 1")
    return result


def _reason(run: Run, job: dict[str, Any]) -> str:
    """Why this run has no final figures; nothing for one that has."""
    if run.state == State.FINISHED:
        return ""
    if run.state == State.PRUNED:
        if job.get("error"):  # by halving, which says where
            return _one_line(job["error"])
        rows = epochs(run.folder)[0]
        return f"pruned after {_epochs(max(rows, default=0))}"
    if run.state in (State.WAITING, State.PENDING):
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
    if run.state == State.RUNNING:
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
    typed = {key: value.strip("'\"") for key, value in pairs if not _is_place(key)}
    if "callbacks" in typed:
        typed["callbacks"] = _acting(typed["callbacks"])
    return typed


def _acting(value: str) -> str:
    """Callbacks without those that only watch: [default,pictures,ema] is ema."""
    names = re.findall(r"\w+", value)
    return ",".join(name for name in names if name not in WATCHING) or "none"


def _typed_in(folder: Path) -> dict[str, str]:
    found = _yaml(folder / ".hydra" / "overrides.yaml")
    return _typed(map(str, found)) if isinstance(found, list) else {}


def _settle(runs: list[Run], keys: list[str]) -> None:
    """Leave each run the values of `keys` alone, those it did not type from its config."""
    for run in runs:
        if any(key not in run.settings for key in keys):
            run.settings = {
                **_DEFAULTS,
                **_of_result(run),
                **_configured(run),
                **run.settings,
            }
        run.settings = {key: run.settings.get(key, UNKNOWN) for key in keys}


def _rounded(value: str) -> str:
    """What a search draws has sixteen digits, which nobody reads."""
    try:
        return value if value.lstrip("-").isdigit() else f"{float(value):.4g}"
    except ValueError:
        return value


_DEFAULTS = {"callbacks": "none"}  # nobody who typed no callback added one that acts


def _varied(runs: list[Run]) -> list[str]:
    """The keys that tell these runs apart.

    One choice may change many keys (`optimizer=adam` its betas, `seed` data.seed). So first come
    the keys that somebody typed, then group choices, then the rest, and of what was not typed a
    key is taken only where it differs between runs that all keys before it leave alike.

    A run without a config tells what was typed and the figures of result.json; other keys of it
    are unknown, which is a value of its own.
    """
    settings: dict[Path, dict[str, str]] = {}
    partly = set()  # runs that tell some keys alone
    for run in runs:
        configured = _configured(run)
        if configured or run.settings or run.result:  # a run that left nothing tells nothing apart
            known = {**_DEFAULTS, **_of_result(run), **configured, **run.settings}
            settings[run.folder] = {k: v for k, v in known.items() if _is_factor(k)}
            if not configured:
                partly.add(run.folder)
    typed = [k for k in dict.fromkeys(k for run in runs for k in run.settings) if _is_factor(k)]
    names = list(dict.fromkeys(key for values in settings.values() for key in values))

    def value(folder: Path, key: str) -> str | None:
        return settings[folder].get(key, UNKNOWN if folder in partly and key in typed else None)

    def differs(key: str) -> bool:
        told = {value(folder, key) for folder in settings if folder not in partly or key in typed}
        return len(told) > 1

    varying = [
        key for key in (*typed, *sorted(set(names) - set(typed), key=names.index)) if differs(key)
    ]
    kept: list[str] = []
    for key in varying:
        before = {tuple(value(folder, k) for k in kept) for folder in settings}
        after = {tuple(value(folder, k) for k in (*kept, key)) for folder in settings}
        if key in typed or len(after) > len(before):
            kept.append(key)
    return kept


def _is_factor(key: str) -> bool:
    parts = re.split(r"[./]", key)
    above = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    if key == "data" or above & set(NO_FACTORS):
        return False
    return not (parts[0] == "callbacks" and len(parts) > 1 and parts[1] in WATCHING)


def _of_result(run: Run) -> dict[str, str]:
    """Keys that a run without a config still tells."""
    names = {"model": "model", "seed": "seed", "batch_size": "data.batch_size"}
    return {key: str(run.result[name]) for name, key in names.items() if name in run.result}


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
    if not run.config:
        return {}
    place = str(run.config.get("run_dir", run.folder))
    choices: dict[str, Any] = {
        key: run.result[key] for key in ("model", "data") if key in run.result
    }
    choices |= run.choices
    flat = {
        key: value for key, value in _flat(run.config) if place not in value and not _is_place(key)
    }
    return {key: str(value) for key, value in choices.items()} | flat


def _choices(path: Path) -> dict[str, Any]:
    """The group choices that Hydra keeps; only their lines are parsed, the file is long."""
    try:
        match = re.search(r"^    choices:\n((?: {6}.*\n)+)", read_text(path), re.MULTILINE)
        choices = parse_yaml(match[1]) if match else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(choices, dict):
        return {}
    return {key: value for key, value in choices.items() if not str(key).startswith("hydra")}


def _is_place(key: str) -> bool:
    return key.split(".")[0] in PLACES


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

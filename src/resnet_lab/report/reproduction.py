"""The command that makes a run again, and what has changed since; runs nothing, imports no torch.

All of it comes from the run's folder, which anybody may have written: texts to read, never to run.
"""

import platform
import shlex
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from resnet_lab.config.compose import APP, PACKAGE, key_of
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.report.differences import patch
from resnet_lab.report.runs import Run
from resnet_lab.run import checkout
from resnet_lab.run.folder import RunFolder, shown

# Of a job of a sweep or a resumed run, and not of the run that it was.
_OF_THE_JOB = ("hydra.run.dir", "resume", "run_dir", "callbacks.last.pause_after")
_SHORT = 10  # digits of a commit


@dataclass(frozen=True)
class Change:
    """Something that is not as it was.

    Attributes:
        then, now: of the run, and here.
    """

    what: str
    then: str
    now: str


@dataclass
class Reproduction:
    """How to make a run again.

    Attributes:
        command: for a shell.
        steps: commands that bring the code back, before it.
        unknown: sentences on what cannot be compared.
    """

    command: str
    changes: list[Change] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def reproduction(run: Run) -> Reproduction:
    """The command of a run, and what has changed since.

    Raises:
        UserError: the folder does not tell how it was begun.
    """
    found = Reproduction(command(run))
    _compare_versions(run, found)
    _compare_code(run, found)
    identity = run.result.get("data_identity")
    found.unknown.append(
        "data: whether the images are the same is told by data_identity in result.json of the new "
        f"run, which should be {identity}"
        if identity
        else "data: the run did not record what its images were"
    )
    if device := run.result.get("device_name"):
        precision = run.result.get("precision", "?")
        found.unknown.append(f"device: it computed on {device}, precision {precision}")
    return found


def command(run: Run) -> str:
    """What to type for this run by itself, quoted for a shell.

    The overrides are those that Hydra has kept, of a job those of sweep_job.json; the program and
    its options (as --config-dir) those of the command in result.json.
    """
    program, options, typed = _recorded(run)
    folder = RunFolder(run.folder)
    overrides = folder.read_job().get("overrides")
    if not _texts(overrides):
        overrides = folder.read_overrides()
    if overrides is None:
        overrides = typed
    if overrides is None:
        raise UserError(
            f"{printable(str(run.folder))} does not tell how it was begun: there is neither "
            ".hydra/overrides.yaml nor a command in result.json."
        )
    kept = [word for word in overrides if key_of(word) not in _OF_THE_JOB]
    return printable(shlex.join([*program, *options, *kept]))


def _recorded(run: Run) -> tuple[list[str], list[str], list[str] | None]:
    """Program, options and overrides of the command in result.json; of our own program as it is
    started here."""
    here = ["resnet-lab", "train"]
    if not APP.is_relative_to(PACKAGE):  # a checkout
        here = ["python", shown(APP / "train.py")]
    try:
        words = shlex.split(str(run.result["command"]))
    except (KeyError, ValueError):
        return here, [], None
    count = 1 if words[:1] and words[0].endswith(".py") else 2
    program, rest = words[:count], words[count:]
    options, overrides, value_follows = [], [], False
    for word in rest:
        if word.startswith("-") or value_follows:
            value_follows = word.startswith("-") and "=" not in word and word not in _FLAGS
            options.append(word)
        else:
            overrides.append(word)
    ours = program in (["resnet-lab", "train"], ["python", "train.py"]) or program[-1:] == [
        str(APP / "train.py")
    ]
    return (here if ours else program), options, overrides


_FLAGS = ("-m", "--multirun", "--resolve", "--run", "-r")  # of Hydra, without a value


def _texts(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(text, str) for text in content)


# ------------------------------------------------------------------ what has changed


def _compare_versions(run: Run, found: Reproduction) -> None:
    recorded = run.result.get("versions")
    if not isinstance(recorded, dict) or not recorded:
        found.unknown.append("versions: the run did not record any")
        return
    for name, then in recorded.items():
        now = platform.python_version() if name == "python" else _installed(name)
        if now != str(then):
            found.changes.append(Change(name, str(then), now))


def _installed(name: str) -> str:
    try:
        return version(name)
    except (PackageNotFoundError, ValueError):
        return "not installed"


def _compare_code(run: Run, found: Reproduction) -> None:
    """Commit and uncommitted changes, and how both are brought back."""
    then = run.result.get("git_commit")
    now = checkout.commit()
    if not isinstance(then, str) or not then:
        found.unknown.append("code: the run was not begun from a git checkout of this project")
        return
    if now is None:
        found.unknown.append(f"code: it was commit {_short(then)}; this is no git checkout of it")
        return
    base, base_now = then.removesuffix("-dirty"), now.removesuffix("-dirty")
    if base != base_now:
        found.changes.append(Change("git commit", _short(base), _short(base_now)))
    recorded, current = patch(run), checkout.patch()
    if recorded is None and then.endswith("-dirty"):
        found.unknown.append(
            f"code: commit {_short(base)} was changed, and no code.patch tells how: it is of an "
            "earlier version of this project, or the run was published"
        )
    elif (recorded or "") != current:
        found.changes.append(Change("uncommitted changes", *_told_apart(recorded or "", current)))
    if any(change.what in ("git commit", "uncommitted changes") for change in found.changes):
        _add_steps(run, base, bool(recorded and checkout.files_of(recorded)), found)
        if current:
            found.unknown.append(
                "code: this checkout has changes of its own; commit them before another commit is "
                "checked out"
            )
    for line in (recorded or "").splitlines():
        if not line.startswith("# "):
            break
        found.unknown.append(f"code.patch: {printable(line[2:])}")


def _add_steps(run: Run, base: str, has_patch: bool, found: Reproduction) -> None:
    """How the code is brought back, from the folder where the user stands."""
    at_home = Path.cwd() == APP
    git = "git" if at_home else f"git -C {shlex.quote(str(APP))}"
    found.steps.append(f"{git} checkout {shlex.quote(base[:_SHORT])}")
    if has_patch:
        file = RunFolder(run.folder).patch
        path = shown(file) if at_home else str(file.absolute())
        found.steps.append(f"{git} apply {shlex.quote(printable(path))}")


def _told_apart(then: str, now: str) -> tuple[str, str]:
    """Two patches in words: how many files, and which are not the same in both."""
    files, files_now = checkout.files_of(then), checkout.files_of(now)
    names = [n for n in {**files, **files_now} if files.get(n) != files_now.get(n)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    shown_names = printable(", ".join(names[:3])) + more
    counts = [f"{len(n)} file{'' if len(n) == 1 else 's'}" for n in (files, files_now)]
    return counts[0], f"{counts[1]}; not the same: {shown_names}"


def _short(commit: str) -> str:
    dirty = "-dirty" if commit.endswith("-dirty") else ""
    return printable(commit.removesuffix("-dirty")[:_SHORT]) + dirty

"""The code of a run: the commit of this checkout, and what was changed in it since; imports no
torch."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from resnet_lab.config.compose import APP

MOST_PATCH = 2**20  # bytes of a patch, and of one new file in it
SECONDS = 10  # after which git counts as not answering
SOURCES = ("src", "conf", "train.py")  # where a new file may be a part of the code
_FILE = re.compile(r'^diff --git "?a/(.*?)"? "?b/', re.MULTILINE)


def commit() -> str | None:
    """The commit of this checkout, "-dirty" where it was changed; None for an installed package,
    or without git."""
    describe = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return (_git(*describe) or b"").decode().strip() or None if _is_ours() else None


def patch() -> str:
    """What this checkout has changed since its commit, for `git apply`; "" where nothing has.

    New files below `SOURCES` that git does not ignore are part of it. What is left out (files that
    are no text, large ones, and a patch of more than `MOST_PATCH` bytes) is named in its first
    lines, which git passes over.
    """
    if not _is_ours():
        return ""
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        index = _index_with_new_files(Path(folder), notes)
        environment = {"GIT_INDEX_FILE": str(index)} if index else {}
        changed = _git("diff", "HEAD", "--numstat", "-z", "--no-renames", environment=environment)
        if changed is None:
            return ""
        lines = [line.split("\t", 2) for line in changed.decode(errors="replace").split("\0")]
        files = [(line[0], line[2]) for line in lines if len(line) == 3]
        notes += [f"not in it: {name} (no text)" for count, name in files if count == "-"]
        texts = [name for count, name in files if count != "-"]
        diff, size = _diff(texts, environment) if texts else (b"", 0)
    if size > MOST_PATCH:
        notes.append(f"left out: the patch has {size:,} bytes, more than {MOST_PATCH:,}")
    head = "".join(f"# {note}\n" for note in notes)
    try:
        return head + diff.decode()
    except UnicodeDecodeError:
        return head + "# left out: the patch is not UTF-8\n"


def files_of(patch: str) -> dict[str, str]:
    """The part of a patch for each file that it changes."""
    found = list(_FILE.finditer(patch))
    starts = [match.start() for match in found] + [len(patch)]
    return {match[1]: patch[starts[n] : starts[n + 1]] for n, match in enumerate(found)}


def _is_ours() -> bool:
    """Whether the checkout around us is this project's: an environment may lie in the checkout of
    something else."""
    top = (_git("rev-parse", "--show-toplevel") or b"").decode().strip()
    return bool(top) and Path(top).resolve() == APP.resolve()


def _index_with_new_files(folder: Path, notes: list[str]) -> Path | None:
    """A copy of git's index that lists the new files, too, so that one diff shows them all; None
    where there are none. The checkout itself stays as it is."""
    listed = _git("ls-files", "--others", "--exclude-standard", "-z", "--", *SOURCES) or b""
    new = []
    for name in filter(None, listed.decode(errors="replace").split("\0")):
        path = APP / name
        size = os.lstat(path).st_size if os.path.lexists(path) else 0
        if size > MOST_PATCH:
            notes.append(f"not in it: {name} (new, {size:,} bytes)")
        elif path.is_file():
            new.append(name)
    original = (_git("rev-parse", "--git-path", "index") or b"").decode().strip()
    if not new or not (APP / original).is_file():
        return None
    index = folder / "index"
    shutil.copyfile(APP / original, index)
    names = "\0".join(new).encode()
    options = ("add", "--intent-to-add", "--pathspec-from-file=-", "--pathspec-file-nul")
    environment = {"GIT_INDEX_FILE": str(index)}
    done = _git("--literal-pathspecs", *options, given=names, environment=environment)
    return None if done is None else index


def _diff(names: Sequence[str], environment: Mapping[str, str]) -> tuple[bytes, int]:
    """The diff of these files, whatever the user's git is set to show, and its size; no diff where
    that is above `MOST_PATCH`."""
    with tempfile.TemporaryFile() as out:
        plain = ("--no-color", "--no-ext-diff", "--no-textconv", "--no-renames")
        prefix = ("--src-prefix=a/", "--dst-prefix=b/")
        command = ("--literal-pathspecs", "diff", "HEAD", *plain, *prefix, "--", *names)
        if _git(*command, out=out.fileno(), environment=environment) is None:
            return b"", 0
        size = os.fstat(out.fileno()).st_size
        out.seek(0)
        return (out.read() if size <= MOST_PATCH else b""), size


def _git(
    *words: str,
    given: bytes = b"",
    out: int = subprocess.PIPE,
    environment: Mapping[str, str] | None = None,
) -> bytes | None:
    """What git answers, b"" where it goes to the file `out`; None where it fails or is missing."""
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=APP,
            input=given,
            stdout=out,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", **(environment or {})},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout or b"") if done.returncode == 0 else None

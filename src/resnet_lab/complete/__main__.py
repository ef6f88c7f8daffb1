"""`python -m resnet_lab.complete`: called by the scripts of `resnet-lab completion`.

Its arguments are `bash LINE WORDBREAKS`, the line up to the cursor and COMP_WORDBREAKS; or
`zsh|fish CURRENT WORD...`, the beginning of a word and those before it. It prints a line for each
word that fits.
"""

import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence

from resnet_lab.complete.candidates import complete

_WITHIN = {"'": "'", '"': '"$`\\!'}  # letters that mean something within a quote


def ends(word: str) -> bool:
    """Whether a space may follow a word: it is whole, not "model." or "outputs/"."""
    return not word.endswith(("=", ".", "/"))


def for_bash(line: str, breaks: str) -> Iterator[str]:
    """What bash is to put in place of the current word: of "model=res" that is what follows "=".

    Args:
        line: the command line up to the cursor.
        breaks: the letters at which bash parts words (COMP_WORDBREAKS).
    """
    words, current, quote = split(line)
    if quote:  # bash takes all that stands within it for one word
        for word, _ in complete(words, current):
            if not set(word) & set(_WITHIN[quote]):
                yield word
        return
    start = max((current.rfind(letter) + 1 for letter in "=:" if letter in breaks), default=0)
    for word, _ in complete(words, current):
        yield _escaped(word[start:]) + (" " if ends(word) else "")


def split(line: str) -> tuple[list[str], str, str]:
    """The words of a line, the one being typed ("" after a space), and its open quote ("")."""
    for quote in ("", "'", '"'):
        try:
            words = shlex.split(line + quote)
        except ValueError:
            continue
        if not quote and (not line or line[-1].isspace()) and not line.endswith("\\ "):
            words.append("")
        return words[:-1], words[-1], quote
    return [], "", ""


def _escaped(word: str) -> str:
    return re.sub(r"[^\w@%+=:,./~\[\]-]", lambda match: f"\\{match[0]}", word)


def for_others(words: Sequence[str], current: str) -> Iterator[str]:
    """A line for each word, a tab, and what it means; zsh and fish quote by themselves."""
    for word, meaning in complete(words, current):
        text = meaning if meaning.isprintable() else ""
        yield f"{word}\t{text}"


def main(given: Sequence[str]) -> None:
    """See above."""
    lines: Iterable[str] = (
        for_bash(given[1], given[2]) if given[0] == "bash" else for_others(given[2:], given[1])
    )
    sys.stdout.reconfigure(encoding="utf-8", errors="ignore")  # type: ignore[union-attr]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main(sys.argv[1:])

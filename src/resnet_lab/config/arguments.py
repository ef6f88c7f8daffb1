"""Words of a command line that are no key=value but seem to mean one: "--lr 0.1", "resnet50"."""

from collections.abc import Container, Sequence

from resnet_lab.config import options
from resnet_lab.config.suggest import (
    MOST,
    either,
    meant,
    other_choice,
    plain,
    replacing,
    shown,
    spelled,
    typed,
)


def unreadable(word: str, words: Sequence[str]) -> str | None:
    """What a word without "=" may have meant: "resnet50" -> "model=resnet50"."""
    behind = words[words.index(word) + 1 :] if word in words else ()
    value = next((other for other in behind if other != "="), None)
    if value is not None and "=" not in value:  # "lr 0.1", "lr = 0.1"
        if word in options.keys(options.selection(())):
            return typed(word, value)
        if meaning := next(meant(word, value, ()), None):
            return meaning
    found = [
        f"{group}={choice}"
        for group, names in options.groups().items()
        for choice in names
        if word and plain(choice) == plain(word)
    ]
    return either(found[:MOST]) if found else None


def mistaken_options(words: Sequence[str], unknown: Sequence[str]) -> str | None:
    """The sentence for options that mean a key=value, such as "--lr 0.1"; None for others."""
    typed, found = _as_settings(words, [word for word in unknown if word.startswith("-")])
    if not found:
        return None
    return (
        f"{shown(' '.join(typed))}: settings are key=value, without dashes; did you mean "
        f"{' '.join(found)}?"
    )


def _as_settings(words: Sequence[str], unknown: Container[str]) -> tuple[list[str], list[str]]:
    """Words like "--lr 0.1 --amp" as key=value.

    Args:
        words: a command line.
        unknown: those of its options that do not exist.

    Returns:
        The words of such options, values included, and what they may have meant; the latter []
        where one of them means nothing.
    """
    taken: list[str] = []
    found: list[str] = []
    rest = [*words]
    while rest:
        word = rest.pop(0)
        if word not in unknown:
            continue
        key, given, value = word.lstrip("-").partition("=")
        taken.append(word)
        if not given:
            value = "true"
            if rest and not rest[0].startswith("-") and "=" not in rest[0]:
                value = rest.pop(0)
                taken.append(value)
        meaning = _flag(key, value)
        if meaning is None:
            return taken, []
        found += [part for part in meaning.split() if part not in found]
    return taken, found


def _flag(key: str, value: str) -> str | None:
    if key in options.groups() or key in options.keys(options.selection(())):
        if value in options.groups().get(key, (value,)):
            return spelled(f"{key}={value}")
        return replacing(other_choice(key, value) or f"{key}={{}}", value, ())
    return next(meant(key, value, ()), None)

"""What somebody may have meant who has typed a key or a choice that does not exist.

Nothing here changes a command: it is said what could be typed in its place.
"""

import difflib
import itertools
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence

from resnet_lab.config import options
from resnet_lab.config.words import CHOICES, KEYS, TRUNKS, Replacement

CLOSE, VERY_CLOSE = 0.6, 0.75  # likeness of two words, 0 to 1
LISTS = ("augment", "callbacks", "logger")  # groups of which several can be chosen
MOST = 2  # suggestions in one sentence


def unknown_key(key: str, words: Sequence[str]) -> str:
    """The sentence for an override of a key that is not there.

    Args:
        key: "lr", "data.batchsize", "experiment/ablation".
        words: the command line; it says which value was typed, and for which config.
    """
    word = next((word for word in words if _key(word) == key), key)
    value = word.partition("=")[2] if "=" in word else None
    others = [other for other in words if other != word and "=" in other and other[0] != "-"]
    says = f"{shown(word)}: there is no such key"
    chosen = options.selection(others)
    if having := _choices_with(key, chosen):
        group = key.partition(".")[0]
        if group not in LISTS:
            taken = f"{group}={','.join(chosen[group])}"
            return f"{says} with {taken}, only with {group}={either(having)}."
        best = next((name for name in having if name in key.split(".")), having[0])
        together = spelled(f"{group}=[{','.join((*chosen[group], best))}]")
        return f"{says}; did you mean {together} {typed(key, value)}?"
    found = [*itertools.islice(meant(key, value, others), MOST)]
    if found == [""]:
        return f"{says}; leave it out, nothing is needed for that."
    if found:
        return f"{says}; did you mean {either(found)}?"
    if key.startswith("hydra."):
        return f"{says}; python train.py --cfg hydra lists Hydra's."
    known = options.keys(chosen)
    parent = key.rpartition(".")[0]
    while parent and not any(name.startswith(f"{parent}.") for name in known):
        parent = parent.rpartition(".")[0]
    return f"{says}; {offer(key.rpartition('.')[2], _below(parent, known))}"


def unknown_choice(group: str, name: str, words: Sequence[str]) -> str:
    """The sentence for a choice of a group that is not there, such as model=resnet-18."""
    says = f"{shown(f'{group}={name}')}: there is no such choice"
    others = [word for word in words if _key(word) != group and "=" in word]
    names = options.choices_of(group)
    alike = [choice for choice in names if plain(choice) == plain(name)]
    alike = alike or [c for c in names if plain(c.rpartition("/")[2]) == plain(name)]
    if not alike and plain(name) in ("none", "null") and plain(name) not in CHOICES.get(group, {}):
        return f"{says}; leave it out."
    if not alike and (replacement := other_choice(group, name)) is not None:
        return f"{says}; did you mean {replacing(replacement, name, others)}?"
    if not alike:
        if (best := _closest(name, names)) is None:
            return f"{says}; {offer(name, names)}"
        return f"{says}; did you mean {_in_its_list(group, name, best, words)}? {_possible(names)}"
    return f"{says}; did you mean {either(_in_its_list(group, name, c, words) for c in alike)}?"


def offer(wanted: str, choices: Sequence[str]) -> str:
    """The closest of some names, if one is close, and all of them."""
    best = _closest(wanted, choices)
    return f"{f'did you mean {best}? ' if best else ''}{_possible(choices)}"


# ------------------------------------------------------------------ keys


def meant(key: str, value: str | None, others: Sequence[str]) -> Iterator[str]:
    """What may be typed in place of key=value, the likeliest first; "": nothing at all.

    Args:
        value: None where it is not known.
        others: the other words of the command line.
    """
    group, _, folder = key.partition("/")
    if folder and group in options.groups() and value:
        name = f"{folder}/{value}"
        if name in options.groups()[group]:
            yield spelled(f"{group}={name}")
            return
    known = options.keys(options.selection(others))
    parent, _, last = key.rpartition(".")
    siblings = _below(parent, known) if parent else []
    for sibling in siblings:
        if plain(sibling) == plain(last):
            yield typed(f"{parent}.{sibling}", value)
            return
    if not siblings or _closest(last, siblings, VERY_CLOSE) is None:
        if (replacement := KEYS.get(plain(last))) is not None:
            yield replacing(_of_value(replacement, value), value, others)
            return
        exact = [*_named(last, known)]
        exact.sort(key=lambda name: -_likeness(parent, name.rpartition(".")[0])[0])
        if parent and exact and _likeness(parent, exact[0].rpartition(".")[0])[0] >= CLOSE:
            del exact[1:]
        if exact:
            yield from (typed(name, value) for name in exact)
            return
        if (elsewhere := _elsewhere(last)) is not None:
            yield replacing(f"{elsewhere}={{}}", value, others)
            return
    yield from _close(key, value, others, known, siblings)


def _close(
    key: str,
    value: str | None,
    others: Sequence[str],
    known: Mapping[str, options.Key],
    siblings: Sequence[str],
) -> Iterator[str]:
    """Names that are spelled much like a key."""
    parent, _, last = key.rpartition(".")
    if siblings:
        if (best := _closest(last, siblings)) is not None:
            yield typed(f"{parent}.{best}", value)
        return
    top = [*_below("", known), *options.groups()]
    if not parent and (best := _closest(last, top)) is not None:
        yield typed(best, value)
        return
    if parent and (best := _closest(parent, top)) is not None:
        if (below := _closest(last, _below(best, known))) is not None:
            yield typed(f"{best}.{below}", value)
        return
    lasts = {name.rpartition(".")[2]: name for name in reversed([*known]) if _free(name, known)}
    best = _closest(last, [*lasts], VERY_CLOSE)
    word = _closest(plain(last), [*KEYS], VERY_CLOSE)
    if word and (not best or _likeness(plain(last), word) > _likeness(last, best)):
        yield replacing(_of_value(KEYS[word], value), value, others)
    elif best:
        yield typed(lasts[best], value)


def _named(last: str, known: Mapping[str, options.Key]) -> Iterator[str]:
    """Keys whose last part is this, but for those that only repeat another one's value."""
    for name in known:
        if plain(name.rpartition(".")[2]) == plain(last) and _free(name, known):
            yield name


def _free(name: str, known: Mapping[str, options.Key]) -> bool:
    return not known[name].value.startswith("${") and not name.startswith("hydra.")


def _elsewhere(last: str) -> str | None:
    """A choice that has such a key, and the key: "scheduler=multistep scheduler.gamma"."""
    usual = options.selection(())
    for group, names in options.groups().items():
        if group in ("experiment", *options.HYDRA_GROUPS):
            continue
        for name in (*usual[group], *names):
            for key in options.keys({group: (name,)}):
                if plain(key.rpartition(".")[2]) == plain(last) and key.startswith(f"{group}."):
                    choice = f"[default,{name}]" if group == "callbacks" else name
                    return f"{group}={choice} {key}"
    return None


def _choices_with(key: str, chosen: Mapping[str, Sequence[str]]) -> list[str]:
    """The choices of a key's group that have it, where those taken do not."""
    group = key.partition(".")[0]
    if group not in options.groups() or group == "experiment" or "." not in key:
        return []
    return [name for name in options.groups()[group] if key in options.keys({group: (name,)})]


def _below(parent: str, known: Mapping[str, options.Key]) -> list[str]:
    """The names right below a key: for "data" ["batch_size", ...]."""
    start = f"{parent}." if parent else ""
    names = {name.removeprefix(start).partition(".")[0] for name in known if name.startswith(start)}
    return sorted(name for name in names if not name.startswith("_") and name != "hydra")


# ------------------------------------------------------------------ choices


def other_choice(group: str, name: str) -> str | None:
    """What is written for a choice that is no file of its group; see `words.CHOICES`."""
    if group == "data" and re.match(r"[~.]?\.?/|\w:|.*/", name):
        return "data=imagefolder data.root={}"
    return CHOICES.get(group, {}).get(plain(name))


def _in_its_list(group: str, wrong: str, right: str, words: Sequence[str]) -> str:
    """The word for a group with one of its names put right: callbacks=[default,ema]."""
    word = next((word for word in words if _key(word) == group), f"{group}={wrong}")
    value = word.partition("=")[2]
    if value.startswith("["):
        pattern = rf"(?<![\w/.-]){re.escape(wrong)}(?![\w/.-])"
        return spelled(f"{group}={re.sub(pattern, lambda _: right, value)}")
    return f"{group}={right}"


# ------------------------------------------------------------------ words


def _of_value(replacement: Replacement, value: str | None) -> str:
    if isinstance(replacement, str):
        return replacement
    return replacement.get(plain(value or ""), replacement["*"])


def replacing(replacement: str, value: str | None, others: Sequence[str]) -> str:
    """A replacement with the value that was typed, for a command line with these other words."""
    trunk = next((o.partition("=")[2] for o in others if o.startswith("model=")), "")
    trunk = trunk if trunk in TRUNKS else "resnet50"
    filled = [
        part.format("..." if value is None else value, trunk=trunk) for part in replacement.split()
    ]
    parts = [part for part in filled if part not in others]
    keys = {_key(part) for part in parts}
    left_out = [other for other in others if _key(other) in keys]
    text = " ".join(map(spelled, parts))
    return f"{text} (and leave out {' '.join(map(shown, left_out))})" if left_out else text


def typed(key: str, value: str | None) -> str:
    return key if value is None else spelled(f"{key}={value}")


def spelled(word: str) -> str:
    """A word as a shell takes it."""
    return shlex.quote(word) if re.search(r"[^\w@%+=:,./~-]|^~", word) else word


def shown(word: str) -> str:
    """A word that was typed, on one line."""
    return "".join(c if c.isprintable() else "?" for c in word)


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def plain(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word.lower())


def either(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def _possible(names: Iterable[str]) -> str:
    return f"Possible: {', '.join(names)}."


def _likeness(wanted: str, name: str) -> tuple[float, int]:
    """How alike two words are, and how many letters they share from the first on."""
    ratio = difflib.SequenceMatcher(None, wanted, name).ratio()
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(wanted, name, strict=False))
    return ratio, len([*alike])


def _closest(wanted: str, names: Sequence[str], least: float = CLOSE) -> str | None:
    best = max(names, key=lambda name: _likeness(wanted, name), default=None)
    return best if best is not None and _likeness(wanted, best)[0] >= least else None

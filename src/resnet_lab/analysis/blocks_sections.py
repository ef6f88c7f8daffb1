"""A net's steps, arranged as stem, stages and head; no torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from resnet_lab.analysis.blocks_steps import (
    Chain,
    Chunk,
    Fork,
    Kind,
    Outline,
    Run,
    Section,
    Shape,
    Step,
)


def arrange(
    label: str, image: Shape, chain: Chain, blocks: Mapping[str, Chunk], params: int
) -> Outline:
    """The outline of a net.

    A stage is what stands in one container with blocks; before the first is the stem, after the
    last the head. In a net without blocks a stage ends with its pool.

    Args:
        image: the shape of what the net sees.
        chain: its steps, a block being one.
        blocks: these by their paths; those inside forks of the net stay steps.
        params: of the whole net.
    """
    blocks = {item.path: blocks[item.path] for item in chain if item.path in blocks}
    sections: list[Section] = []
    kinds: dict[tuple[object, ...], Kind] = {}
    for name, items in _sections(chain, blocks):
        before = sections[-1].output if sections else image
        shown = name.replace(" ", "")  # "stage2.1" is the place of a block, as in `models.parts`
        members: list[Run | Chunk] = []
        own = count = 0
        seen = before  # by the next item
        for item in items:
            last = members[-1] if members else None
            if item.path in blocks:
                count += 1
                block = replace(blocks[item.path], name=f"{shown}.{count}")
                kind = kinds.setdefault(block.kind, Kind(len(kinds) + 1, block))
                kind.places.append(block.name)
                if isinstance(last, Run) and last.kind is kind:
                    members[-1] = Run(kind, last.times + 1)
                else:
                    members.append(Run(kind, 1))
                own += block.params
            else:
                of_item = _params([item])
                if isinstance(last, Chunk):
                    longer = (*last.chain, item)
                    members[-1] = replace(last, chain=longer, params=last.params + of_item)
                else:
                    members.append(Chunk(shown, "", seen, (item,), of_item))
                own += of_item
            seen = item.output
        sections.append(Section(name, before, items[-1].output, own, members))
    return Outline(label, params, sections, list(kinds.values()))


def _params(chain: Sequence[Step | Fork]) -> int:
    return sum(
        item.params if isinstance(item, Step) else item.params + sum(map(_params, item.paths))
        for item in chain
    )


def _sections(chain: Chain, blocks: Mapping[str, Chunk]) -> Iterator[tuple[str, list[Step | Fork]]]:
    """(name, steps) of each section that has steps."""
    names = _by_container(chain, blocks) if blocks else _by_pools(chain)
    found: dict[str, list[Step | Fork]] = {}
    for name, item in zip(names, chain, strict=True):
        found.setdefault(name, []).append(item)
    yield from found.items()


def _by_container(chain: Chain, blocks: Mapping[str, Chunk]) -> list[str]:
    containers = list(
        dict.fromkeys(item.path.rpartition(".")[0] for item in chain if item.path in blocks)
    )
    last_block = max(i for i, item in enumerate(chain) if item.path in blocks)
    names, stage = [], 0
    for i, item in enumerate(chain):
        inside = [n for n, c in enumerate(containers, 1) if item.path.startswith(f"{c}.")]
        if inside:
            stage = max(stage, inside[0])
        over = i > last_block and not inside
        names.append("head" if over else f"stage {stage}" if stage else "stem")
    return names


def _by_pools(chain: Chain) -> list[str]:
    ends = [
        i
        for i, item in enumerate(chain)
        if isinstance(item, Step)
        and item.role == "pool"
        and "{size}" in item.phrases[0].text
        and not item.phrases[0].text.startswith("average pool to")
    ]
    stage_of = [1 + sum(end < i for end in ends) for i in range(len(chain))]
    return ["head" if n > len(ends) else f"stage {n}" for n in stage_of]

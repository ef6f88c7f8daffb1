"""What a net does to an image, as plain data: steps, forks, blocks, sections; no torch.

`tracing` makes it from a net; `blocks_text` and `blocks_layout` show it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from resnet_lab.language import Translate

Shape = tuple[int, ...]  # with the batch: (batch, channels, height, width) or (batch, features)

KOREAN = {
    "conv {size}": "합성곱 {size}",
    "stride {stride}": "스트라이드 {stride}",
    "dilation {dilation}": "팽창 {dilation}",
    "{n} groups": "그룹 {n}개",
    "linear": "완전 연결층",
    "BatchNorm": "배치 정규화",
    "GroupNorm": "그룹 정규화",
    "max pool {size}": "최대 풀링 {size}",
    "average pool {size}": "평균 풀링 {size}",
    "average pool to {size}": "{size} 크기로 평균 풀링",
    "global average pool": "전역 평균 풀링",
    "flatten": "1차원으로 펼치기",
    "sigmoid": "시그모이드",
    "dropout, {n}": "드롭아웃, {n}",
    "drop path, {n}": "드롭 패스, {n}",
    "blur": "흐리게",
    "every 2nd pixel": "픽셀 2개마다 1개",
    "every {stride}th pixel": "픽셀 {stride}개마다 1개",
    "{n} channels of zeros": "0으로 채운 채널 {n}개",
    "times {factor}": "{factor}배",
    "times a learned number": "학습한 수 하나를 곱하기",
    "times learned numbers": "학습한 수를 곱하기",
    "times a gate for each channel": "채널마다 게이트를 곱하기",
    "times a gate for each value": "값마다 게이트를 곱하기",
    "1 minus this": "1에서 빼기",
    "identity": "항등 (그대로)",
    "add": "더하기",
    "multiply": "곱하기",
    "concatenate": "이어 붙이기",
    "image": "이미지",
}


class Phrase(NamedTuple):
    """A part of a step's name: a text that is translated, and the values in it.

    A value named `n` may differ between blocks of one kind, as numbers of channels do.
    """

    text: str
    values: Mapping[str, Any] = {}

    def said(self, say: Translate) -> str:
        return say(self.text, **self.values)

    @property
    def kind(self) -> tuple[Any, ...]:
        return self.text, *((k, v) for k, v in self.values.items() if k != "n")


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        output: the shape of what it puts out.
        role: conv | norm | activation | pool | block | other: its colour.
        inside: of a gate, the steps that make its factor from what is multiplied.
        path: the module's name in the net; "" where it is a function.
        params: its parameters.
    """

    phrases: tuple[Phrase, ...]
    output: Shape
    role: str = "other"
    inside: "tuple[Step, ...]" = ()
    path: str = ""
    params: int = 0

    def said(self, say: Translate) -> str:
        return ", ".join(phrase.said(say) for phrase in self.phrases)

    @property
    def kind(self) -> tuple[Any, ...]:
        return tuple(p.kind for p in self.phrases), tuple(step.kind for step in self.inside)


@dataclass(frozen=True)
class Fork:
    """One tensor goes several ways, which meet in `join`: add | multiply | concatenate.

    A path without steps is an identity. The path with the most steps comes first: the branch.
    """

    paths: "tuple[Chain, ...]"
    join: str
    output: Shape
    path: str = ""
    params: int = 0

    @property
    def kind(self) -> tuple[Any, ...]:
        return self.join, *(tuple(item.kind for item in chain) for chain in self.paths)


Chain = tuple[Step | Fork, ...]


@dataclass(frozen=True)
class Chunk:
    """Some steps that are drawn in one picture: the stem, a block, the head.

    Attributes:
        name: "stem", "stage2.1" (its place in the net), "head".
        module: the class of a block; "" otherwise.
        input: the shape of what it sees.
    """

    name: str
    module: str
    input: Shape
    chain: Chain
    params: int

    @property
    def output(self) -> Shape:
        return self.chain[-1].output if self.chain else self.input

    @property
    def kind(self) -> tuple[Any, ...]:
        return self.module, *(item.kind for item in self.chain)


@dataclass
class Kind:
    """Blocks of one structure; `example` is the first of them, `places` names all."""

    number: int
    example: Chunk
    places: list[str] = field(default_factory=list)


class Run(NamedTuple):
    """Blocks of a kind in a row, `times` many."""

    kind: Kind
    times: int


@dataclass
class Section:
    """The stem, a stage or the head.

    Attributes:
        members: blocks in a row, and chunks of single layers, from input to output.
    """

    name: str
    input: Shape
    output: Shape
    params: int
    members: list[Run | Chunk]


@dataclass
class Outline:
    """A net from image to logits."""

    label: str
    params: int
    sections: list[Section]
    kinds: list[Kind]

    def chunks(self) -> Iterator[Chunk]:
        """What is drawn besides the blocks: stem, head, layers of stages.

        The pool of a stage that has blocks is left out: it is one step, seen in the whole net.
        """
        for section in self.sections:
            alone = len(section.members) == 1
            for member in section.members:
                if isinstance(member, Chunk) and (alone or member.params):
                    yield member


def section_name(name: str, say: Translate) -> str:
    """ "stage 2" -> "stage 2", in the reader's language; others are translated as they are."""
    first, _, number = name.partition(" ")
    return say("stage {number}", number=number) if first == "stage" and number else say(name)


def shape_text(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"

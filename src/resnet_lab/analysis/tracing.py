"""The steps of a net and their shapes, followed from its input to its output.

torch.fx calls each `forward` with a stand-in for the images and notes what is done to it; the notes
are then run once on torch's meta device, where tensors have shapes and no numbers. Nothing is known
of a net but its modules.
"""

from collections.abc import Iterable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

from resnet_lab.analysis.blocks_names import (
    CONTAINERS,
    DIFFERENCES,
    PRODUCTS,
    SIGMOIDS,
    is_layer,
    joins,
    name_function,
    name_layer,
)
from resnet_lab.analysis.blocks_steps import Chain, Chunk, Fork, Phrase, Shape, Step
from resnet_lab.config.errors import UserError


class Untraceable(Exception):
    """A forward that depends on the values of its tensors, or paths that cross."""


def trace(net: nn.Module, image: Shape) -> tuple[Chain, dict[str, Chunk]]:
    """The steps of `net` for images of shape (batch, channels, height, width).

    Args:
        net: on the meta device; it is put into eval mode.

    Returns:
        The steps from image to logits, a block being one; and the blocks by their names in the
        net. A block that cannot be followed is one step of its class's name.

    Raises:
        UserError: the net itself cannot be followed.
    """
    net.eval()
    names = set(blocks(net))
    try:
        whole = _Trace(net, image, names)
        chain = whole.chain()
    except Untraceable as error:
        raise UserError(
            f"{type(net).__name__} cannot be drawn: its forward {error}. "
            "Without --blocks its table can still be had."
        ) from error
    found = {}
    for node in whole.graph.nodes:
        if node.op == "call_module" and node.target in names:
            module = net.get_submodule(node.target)
            shape = whole.shapes[whole.sources[node][0]]
            try:
                steps = _Trace(module, shape, set()).chain()
            except Untraceable:
                steps = (Step((Phrase(type(module).__name__),), whole.shapes[node], "block"),)
            params = _count(module.parameters())
            found[node.target] = Chunk(node.target, type(module).__name__, shape, steps, params)
    return chain, found


def blocks(net: nn.Module) -> list[str]:
    """The names of a net's blocks: modules made of layers that stand in a Sequential.

    A module that holds several of one such class, as a trunk does, is looked into.
    """
    found: list[str] = []
    for name, module in net.named_modules():
        parent = name.rpartition(".")[0]
        if (
            name
            and list(module.children())
            and not is_layer(module)
            and not isinstance(module, CONTAINERS)
            and isinstance(net.get_submodule(parent), nn.Sequential | nn.ModuleList)
            and not any(name.startswith(f"{block}.") for block in found)
            and not _holds_blocks(module)
        ):
            found.append(name)
    return found


def _holds_blocks(module: nn.Module) -> bool:
    inner = [
        type(child)
        for child in module.modules()
        if child is not module
        and list(child.children())
        and not isinstance(child, CONTAINERS)
        and not is_layer(child)
    ]
    return len(inner) > len(set(inner))


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


class _Tracer(fx.Tracer):
    def __init__(self, closed: set[str], open_modules: bool) -> None:
        super().__init__()
        self.closed = closed
        self.open_modules = open_modules

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        childless = not list(module.children())
        return name in self.closed or is_layer(module) or (childless and not self.open_modules)


class _Shapes(fx.Interpreter):
    """Runs a graph and keeps the shape of every tensor; of several tensors, that of the first."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph=graph)
        self.shapes: dict[fx.Node, Shape] = {}

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        tensor = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(tensor, Tensor):
            self.shapes[n] = tuple(tensor.shape)
        return output


class _Trace:
    """The graph of a module's forward, and how it is read as a chain.

    Args:
        module: on the meta device.
        shape: of its input.
        closed: names of modules in it that are one step.
    """

    def __init__(self, module: nn.Module, shape: Shape, closed: set[str]) -> None:
        self.module = module
        for open_modules in (True, False):
            try:
                self.graph = _Tracer(closed, open_modules).trace(module)
                break
            except Exception as error:  # whatever a forward does with a stand-in
                reason = f"cannot be followed ({' '.join(str(error).split())[:200]})"
        else:
            raise Untraceable(reason)
        run = _Shapes(module, self.graph)
        with torch.no_grad():
            run.run(torch.empty(shape, device="meta"))
        self.shapes = run.shapes
        inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
        self.start, self.end = inputs[0], self.graph.output_node()
        self.sources: dict[fx.Node, list[fx.Node]] = {}  # of tensors that depend on the input
        self.split: dict[fx.Node, fx.Node] = {}  # node -> the last that all ways to it pass
        self.depth = {self.start: 0}
        for node in self.graph.nodes:
            sources = [n for n in node.all_input_nodes if n in self.shapes and n in self.depth]
            if sources and node is not self.start:
                self.sources[node] = sources
                self.split[node] = reduce(self._meet, sources)
                self.depth[node] = self.depth[self.split[node]] + 1
        self.used: set[fx.Node] = set()

    def chain(self) -> Chain:
        """The steps from input to output.

        Raises:
            Untraceable: paths cross, so that they cannot be drawn side by side.
        """
        if len(self.sources.get(self.end, [])) != 1:
            raise Untraceable("gives several tensors, or none that depends on its input")
        return self._between(self.start, self.sources[self.end][0])

    def _meet(self, one: fx.Node, other: fx.Node) -> fx.Node:
        """Where the ways to two nodes part."""
        while one is not other:
            if self.depth[one] < self.depth[other]:
                one, other = other, one
            one = self.split[one]
        return one

    def _between(self, start: fx.Node, node: fx.Node, once: bool = True) -> Chain:
        items: list[Step | Fork] = []
        while node is not start:
            if once and node in self.used:
                raise Untraceable("has paths that cross")
            if once:
                self.used.add(node)
            sources = self.sources[node]
            if len(sources) == 1:
                if step := self._step(node, sources[0]):
                    items.append(step)
                node = sources[0]
            elif gated := self._gated(node, sources):
                step, node = gated
                items.append(step)
            else:
                split = self.split[node]
                paths = [self._between(split, source, once) for source in sources]
                paths.sort(key=len, reverse=True)
                where = node.target if node.op == "call_module" else ""
                items.append(Fork(tuple(paths), self._join(node), self.shapes[node], str(where)))
                node = split
        return tuple(reversed(items))

    def _join(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return type(self.module.get_submodule(str(node.target))).__name__
        return joins(node.target)

    def _gated(self, node: fx.Node, sources: list[fx.Node]) -> tuple[Step, fx.Node] | None:
        """A product with a sigmoid is a step of the other factor; None where it is no such."""
        if node.target not in PRODUCTS or len(sources) != 2:
            return None
        for gate, other in (sources, sources[::-1]):
            if self._is_gate(gate):
                inside = self._between(self._meet(gate, other), gate, once=False)
                steps = tuple(step for step in inside if isinstance(step, Step))
                if len(steps) < len(inside):
                    return None  # the gate has forks of its own
                shape = self.shapes[gate]
                each = "channel" if set(shape[2:]) == {1} else "value"
                phrases = (Phrase(f"times a gate for each {each}"),)
                return Step(phrases, self.shapes[node], "other", steps), other
        return None

    def _is_gate(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            return isinstance(layer, nn.Sigmoid | nn.Hardsigmoid)
        if node.target in DIFFERENCES and node.args[:1] == (1,):
            return self._is_gate(self.sources[node][0])
        return node.target in SIGMOIDS

    def _step(self, node: fx.Node, source: fx.Node) -> Step | None:
        after = self.shapes[node]
        tensors = [n for n in node.all_input_nodes if n.op == "get_attr"]
        parameters = [self._attribute(str(n.target)) for n in tensors]
        if node.op == "call_module":
            module = self.module.get_submodule(str(node.target))
            parameters = list(module.parameters())
            named = name_layer(module)
        elif node.target in PRODUCTS and parameters:
            text = "a learned number" if _count(parameters) == 1 else "learned numbers"
            named = (Phrase(f"times {text}"),), "other"
        else:
            named = name_function(node.target, node.args, self.shapes[source], after)
        if named is None:
            return None
        phrases, role = named
        path = str(node.target) if node.op == "call_module" else ""
        return Step(phrases, after, role, path=path, params=_count(parameters))

    def _attribute(self, path: str) -> Any:
        place, _, name = path.rpartition(".")
        return getattr(self.module.get_submodule(place), name)

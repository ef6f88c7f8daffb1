"""A CUDA that is not there: tensors that say they lie on `cuda:N` and compute on the host.

Inside a `World`, torch believes that there are GPUs. Every operation is checked as CUDA would check
it (all tensors on one device, but for numbers on the host), and whatever would make the host wait
for the device is noted with the line that asked for it. CUDA graphs are recorded operation by
operation and run again on the same memory, without any Python of ours: a step that captures a
number, an address or a wait is found out as on a GPU.

To C++ (autograd's engine, autocast) such a tensor is on the host; to Python it is on the device.
Untrue: the kernels are the host's, so their rounding is; streams do nothing; the buckets of DDP are
host memory.
"""

import contextlib
import io
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

aten = torch.ops.aten
HOST = torch.device("cpu")
MINE = ("/resnet_lab/", "/lightning/", "/torchmetrics/", "/tests/")

# The host reads their result, or needs it to know a shape.
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten.histc.default,
    aten.equal.default,
    aten.repeat_interleave.Tensor,
}
INDEXING = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
}
# They move no data and start no kernel.
VIEWS = (
    *("detach", "alias", "view", "_unsafe_view", "_reshape_alias", "as_strided", "expand"),
    *("slice", "select", "squeeze", "unsqueeze", "permute", "transpose", "t", "unbind", "split"),
    *("empty", "empty_like", "empty_strided", "is_pinned"),
)


class Pretended(Tensor):
    """`elem` on the host, said to lie on `place`."""

    elem: Tensor
    place: torch.device
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, elem: Tensor, place: torch.device) -> "Pretended":
        elem = elem.detach()
        made = Tensor._make_subclass(cls, elem, False, dispatch_device=True)
        made.elem, made.place = elem, place
        return made

    def __init__(self, elem: Tensor, place: torch.device) -> None:
        super().__init__()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert World.current is not None, f"{func} after the pretended world has ended"
        return World.current.run(func, args, kwargs or {})

    device = property(lambda self: self.place)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def get_device(self) -> int:
        return self.place.index

    def pin_memory(self, *_: Any) -> Tensor:
        raise RuntimeError(
            "cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned"
        )

    def tolist(self) -> Any:
        assert World.current is not None
        World.current.wait("tolist")
        return self.elem.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Pretended({self.elem!r}, {self.place})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Pretended":
        copy = Pretended(self.elem.clone(), self.place).requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copy._is_param = True  # type: ignore[attr-defined]
        memo[id(self)] = copy
        return copy


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class OtherDevice(RuntimeError):
    """Two devices in one operation."""


class Capturing(RuntimeError):
    """What a CUDA graph cannot hold."""


class Tape:
    """A CUDA graph: the operations between `capture_begin` and `capture_end`, on their memory."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.steps: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.before: list[tuple[Tensor, Tensor]] = []  # what was written to, and its old content
        self._made: set[int] = set()  # storages that were made while recording
        self.replays = 0

    def note(self, func: Any, args: Any, kwargs: Any) -> None:
        """Before an operation: keep what it will overwrite of the world outside the graph."""
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            written = argument.alias_info is not None and argument.alias_info.is_write
            if not (written or "batch_norm" in func._schema.name):  # whose schema keeps it quiet
                continue
            for tensor in tree_flatten(named.get(argument.name))[0]:
                if isinstance(tensor, Tensor) and _address(tensor) not in self._made:
                    self.before.append((tensor, tensor.clone()))

    def add(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        outs = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
        self._made |= {_address(t) for t in outs}
        self.steps.append((func, args, kwargs, outs))

    def end(self) -> None:
        """Recording runs nothing: undo what it did."""
        for tensor, content in reversed(self.before):
            tensor.copy_(content)

    def replay(self) -> None:
        self.replays += 1
        world = World.current
        assert world is not None
        if world.counting:
            world.ops["replay"] += 1
        with _disable_current_modes(), torch.no_grad():
            for func, args, kwargs, outs in self.steps:
                new = func(*args, **kwargs)
                for old, made in zip(
                    outs, (t for t in tree_flatten(new)[0] if isinstance(t, Tensor)), strict=True
                ):
                    if old.data_ptr() != made.data_ptr():
                        old.copy_(made)

    def reset(self) -> None:
        self.steps.clear()


class World(TorchDispatchMode):
    """GPUs that are not there.

    Args:
        gpus: how many.
        major: their compute capability's first number; 9 is an H100, 7 has no bfloat16.
        free, total: bytes of their memory.

    Attributes:
        counting: whether `waits`, `copies` and `ops` are being noted.
        waits: what the host waited for, and where.
        copies: from the host to the device, by kind.
        ops: by name; "replay" is a graph.
        used: the devices that an operation ran on.
        loads: the `map_location` of each torch.load.
        graphs: those recorded.
    """

    current: "World | None" = None

    def __init__(self, gpus: int = 1, major: int = 9, free: int = 79 << 30) -> None:
        super().__init__()
        self.gpus, self.major, self.memory = gpus, major, (free, 80 << 30)
        self.selected = 0
        self.counting = False
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.ops: Counter[str] = Counter()
        self.used: set[torch.device] = set()
        self.loads: list[Any] = []
        self.graphs: list[Tape] = []
        self._tape: Tape | None = None
        self._pinned: set[int] = set()
        self._random: dict[int, Tensor] = {}

    def launches(self) -> int:
        """The noted operations that start a kernel or copy."""
        return sum(n for name, n in self.ops.items() if name.split(".")[-2:][0] not in VIEWS)

    def wait(self, what: str) -> None:
        if self._tape is not None:
            raise Capturing(f"operation not permitted when stream is capturing: {what}")
        if self.counting:
            frames = [
                f for f in traceback.extract_stack()[:-2] if any(m in f.filename for m in MINE)
            ]
            near = [f for f in frames if not f.filename.endswith("pretend_cuda.py")][-3:]
            places = (f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in reversed(near))
            self.waits[f"{what} @ {' < '.join(places)}"] += 1

    # ------------------------------------------------------------------ operations

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is torch.ops.prim.device.default:
            return torch.device("cpu", args[0].place.index)  # C++ tells it so from the host's own
        composite = torch._C._dispatch_has_kernel_for_dispatch_key
        if (
            composite(func.name(), "CompositeImplicitAutograd")
            and func is not aten.is_pinned.default
        ):
            with self._entered():  # as in inference mode, where they come whole
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        flat, shape = tree_flatten((args, kwargs))
        mine = [a for a in flat if isinstance(a, Pretended)]
        wanted = self._named(kwargs.get("device"))
        if not mine and (wanted is None or wanted.type != "cuda"):
            return self._on_host(func, args, kwargs)
        if wanted is not None and wanted.type == "cuda" and wanted.index >= self.gpus:
            raise RuntimeError(f"CUDA error: invalid device ordinal ({wanted})")
        target = self._target(func, args, kwargs, flat, mine, wanted)
        stays = func is aten._to_copy.default and args[0].dtype == kwargs.get(
            "dtype", args[0].dtype
        )
        if self.counting and not (stays and mine and mine[0].place == target):  # then it is itself
            self.ops[str(func)] += 1
        self.used |= {t.place for t in mine} | ({target} if target.type == "cuda" else set())

        bare = [a.elem if isinstance(a, Pretended) else a for a in flat]
        host_args, host_kwargs = tree_unflatten(bare, shape)
        if wanted is not None:
            host_kwargs = {**host_kwargs, "device": HOST}
        if host_kwargs.get("pin_memory"):
            host_kwargs["pin_memory"] = False
        if func is aten._to_copy.default:
            host_kwargs.pop("non_blocking", None)
        kernel = KERNELS.get(func, func)
        with _disable_current_modes():
            if self._tape is not None:
                self._tape.note(func, host_args, host_kwargs)
            out = kernel(*host_args, **host_kwargs)
            if self._tape is not None:
                self._tape.add(kernel, host_args, host_kwargs, out)
        back = {id(t.elem): t for t in mine}

        def wrapped(result: Any) -> Any:
            if not isinstance(result, Tensor) or isinstance(result, Pretended):
                return result
            if id(result) in back:
                return back[id(result)]
            if target.type != "cuda" or any(result is a for a in bare):
                return result
            return Pretended(result, target)

        return tree_map(wrapped, out)

    def _named(self, device: Any) -> torch.device | None:
        """The device an operation asks for, with its number."""
        if device is None:
            return None
        device = torch.device(device)
        if device.type == "cpu":  # with a number: C++ repeats what `prim.device` told it
            return HOST if device.index is None else torch.device("cuda", device.index)
        if device.type == "cuda" and device.index is None:
            return torch.device("cuda", self.selected)
        return device

    def _on_host(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is aten._pin_memory.default:
            pinned = args[0].clone()
            self._pinned.add(_address(pinned))
            return pinned
        if func is aten.is_pinned.default:
            return _address(args[0]) in self._pinned
        return func(*args, **kwargs)

    def _target(self, func: Any, args: Any, kwargs: Any, flat: Any, mine: Any, wanted: Any) -> Any:
        """Where an operation runs, once it is found to be possible."""
        if func is aten._to_copy.default:
            source = args[0]
            target = wanted or source.place
            self._copied(source, target, kwargs.get("non_blocking", False))
            return target
        if func is aten.copy_.default:
            to, source = args[:2]
            target = to.place if isinstance(to, Pretended) else HOST
            without_waiting = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            host = to if target == HOST else source
            self._copied(source, target, without_waiting, host)
            return target
        places = {t.place for t in mine}
        on_host = [a for a in flat if isinstance(a, Tensor) and not isinstance(a, Pretended)]
        if func in INDEXING:
            for index in filter(None.__ne__, args[1]):
                if not isinstance(index, Pretended):
                    self.wait("an index on the host")
                elif index.dtype in (torch.bool, torch.uint8):
                    self.wait("a mask as an index")
        elif any(t.dim() for t in on_host):
            places.add(HOST)
        if len(places) > 1:
            names = " and ".join(sorted(map(str, places)))
            raise OtherDevice(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{names}! ({func})"
            )
        if func in WAITING:
            self.wait(str(func))
        return wanted or next(iter(places), HOST)

    def _copied(self, source: Any, target: Any, without_waiting: bool, host: Any = None) -> None:
        here = isinstance(source, Pretended)
        if here == (target != HOST):
            return  # on one side
        host = source if not here else host
        pinned = host is not None and _address(host) in self._pinned
        kind = f"{'pinned' if pinned else 'pageable'} memory, non_blocking={without_waiting}"
        if self.counting and not here:
            self.copies[kind] += 1
        if not (pinned and without_waiting):
            self.wait(f"a copy {'from' if here else 'to'} the device ({kind})")

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        TorchDispatchMode.__enter__(self)
        try:
            yield
        finally:
            TorchDispatchMode.__exit__(self, None, None, None)

    # ------------------------------------------------------------------ graphs

    @contextlib.contextmanager
    def _record(self, graph: Tape, **_: Any) -> Iterator[None]:
        random = torch.get_rng_state()
        self._tape, counting, self.counting = graph, self.counting, False
        self.graphs.append(graph)
        try:
            yield
        finally:
            self._tape, self.counting = None, counting
            with _disable_current_modes():
                graph.end()
                torch.set_rng_state(random)

    # ------------------------------------------------------------------ torch.cuda

    def __enter__(self) -> "World":
        World.current = self
        torch.__future__.set_swap_module_params_on_conversion(True)
        torch._C._set_only_lift_cpu_tensors(True)
        self._patches = contextlib.ExitStack()
        for name, new in self._stand_ins().items():
            self._patches.enter_context(mock.patch(name, new))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()
        torch.__future__.set_swap_module_params_on_conversion(False)
        torch._C._set_only_lift_cpu_tensors(False)

    def _number(self, device: Any = None) -> int:
        if isinstance(device, int):
            return device
        index = None if device is None else torch.device(device).index
        return self.selected if index is None else index

    def _stand_ins(self) -> dict[str, Any]:
        from torch.optim import optimizer
        from torch.utils import _foreach_utils

        for types in (_foreach_utils, optimizer):  # lists of which tensors go many at a time
            known = getattr(types, "_foreach_supported_types", None)
            if isinstance(known, list) and Pretended not in known:
                known.append(Pretended)
        autocast = torch.autocast
        world = self

        class Stream:
            def __init__(self, *_: Any, **__: Any) -> None: ...
            def wait_stream(self, stream: Any) -> None: ...
            def is_capturing(self) -> bool:
                return world._tape is not None

            def synchronize(self) -> None:
                world.wait("stream.synchronize")

        def select(device: Any) -> None:
            self.selected = self._number(device)

        def memory(device: Any = None) -> tuple[int, int]:
            self.used.add(torch.device("cuda", self._number(device)))
            return self.memory

        def random(device: Any = "cuda") -> Tensor:
            fresh = torch.zeros(16, dtype=torch.uint8)
            return self._random.setdefault(self._number(device), fresh).clone()

        def set_random(state: Tensor, device: Any = "cuda") -> None:
            assert not isinstance(state, Pretended)
            self._random[self._number(device)] = state.clone()

        properties = SimpleNamespace(
            name="Pretended GPU",
            major=self.major,
            minor=0,
            total_memory=self.memory[1],
            multi_processor_count=132,
            L2_cache_size=50 << 20,
            warp_size=32,
            max_threads_per_multi_processor=2048,
            regs_per_multiprocessor=65536,
            shared_memory_per_block_optin=232448,
        )
        nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731
        cuda = {
            "is_available": lambda: True,
            "device_count": lambda: self.gpus,
            "is_initialized": lambda: True,
            "_lazy_init": nothing,
            "init": nothing,
            "is_bf16_supported": lambda including_emulation=True: self.major >= 8,
            "current_device": lambda: self.selected,
            "set_device": select,
            "synchronize": lambda device=None: self.wait("torch.cuda.synchronize"),
            "get_device_name": lambda device=None: f"Pretended GPU {self._number(device)}",
            "get_device_properties": lambda device=None: properties,
            "get_device_capability": lambda device=None: (self.major, 0),
            "mem_get_info": memory,
            "empty_cache": nothing,
            "memory_stats": lambda device=None: {},
            "is_current_stream_capturing": lambda: self._tape is not None,
            "get_rng_state": random,
            "set_rng_state": set_random,
            "get_rng_state_all": lambda: [random(n) for n in range(self.gpus)],
            "set_rng_state_all": lambda states: [set_random(s, n) for n, s in enumerate(states)],
            "manual_seed": nothing,
            "manual_seed_all": nothing,
            "Stream": Stream,
            "stream": lambda stream: contextlib.nullcontext(),
            "current_stream": lambda device=None: Stream(),
            "CUDAGraph": Tape,
            "graph": self._record,
        }
        grouping = (
            *("torch.utils._foreach_utils", "torch.nn.utils.clip_grad"),
            *("torch.optim.optimizer", "torch.optim.swa_utils"),
        )
        return {
            **{f"torch.cuda.{name}": new for name, new in cuda.items()},
            **{f"{module}._group_tensors_by_device_and_dtype": _grouped for module in grouping},
            "torch.cuda.graphs.is_current_stream_capturing": lambda: self._tape is not None,
            "torch._C._cuda_clearCublasWorkspaces": nothing,
            "torch.accelerator.current_stream": lambda device=None: Stream(),
            "torch.accelerator.current_device_index": lambda: self.selected,
            "torch.accelerator.current_accelerator": lambda **_: torch.device("cuda"),
            "torch.autocast": lambda kind, *a, **k: autocast(
                "cpu" if kind == "cuda" else kind, *a, **k
            ),
            "torch.distributed.Backend.default_device_backend_map": {
                **torch.distributed.Backend.default_device_backend_map,
                "cuda": "gloo",  # in the place of NCCL
            },
            "torch.save": self._save,
            "torch.load": self._load,
        }

    def _save(self, content: Any, file: Any, **options: Any) -> None:
        with _disable_current_modes():
            torch_save(tree_map(_elem, content), file, **options)

    def _load(self, file: Any, map_location: Any = None, **options: Any) -> Any:
        """To the host alone: the files do not say where their tensors lay."""
        if not isinstance(file, io.BytesIO):  # no pickle that one process sends to another
            assert map_location == "cpu", "torch.load would go to the device it was saved on"
            self.loads.append(map_location)
        with _disable_current_modes():
            return torch_load(file, map_location="cpu", **options)


def _elem(value: Any) -> Any:
    return value.elem.clone() if isinstance(value, Pretended) else value


torch_save, torch_load = torch.save, torch.load


def _grouped(lists: Any, with_indices: bool = False) -> Any:
    """As torch groups tensors by device and kind, which it does in C++."""
    found: dict[Any, Any] = {}
    for number, first in enumerate(lists[0]):
        parts, indices = found.setdefault((first.device, first.dtype), ([[] for _ in lists], []))
        for part, tensors in zip(parts, lists, strict=True):
            if tensors:
                part.append(tensors[number])
        indices.append(number)
    return {
        key: (parts, indices if with_indices else []) for key, (parts, indices) in found.items()
    }


def _batch_norm(x, weight, bias, mean, var, training, momentum, eps):
    out, *saved = torch.native_batch_norm(
        x.float(), weight, bias, mean, var, training, momentum, eps
    )
    return out.to(x.dtype), *saved, torch.empty(0, dtype=torch.uint8)


def _batch_norm_backward(x, gradient, weight, mean, var, saved_mean, saved_std, eps, reserve):
    saved = (mean, var, saved_mean, saved_std)
    return aten.native_batch_norm_backward(
        gradient.float(), x.float(), weight, *saved, True, eps, [True, True, True]
    )


# What only CUDA has, by what the host has.
KERNELS = {
    aten.cudnn_batch_norm.default: _batch_norm,
    aten.cudnn_batch_norm_backward.default: _batch_norm_backward,
}

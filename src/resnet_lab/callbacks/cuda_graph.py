"""A training step as CUDA graphs: the host starts two of them instead of hundreds of kernels."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor
from torch.optim import Optimizer

from resnet_lab.optim import SAM

log = logging.getLogger(__name__)

WARM_UP = 3  # steps before recording: cuDNN, cuBLAS and the allocator settle in them
LIKE = 0.05  # how far a replay may be from the step itself: bfloat16, sums in any order


class CudaGraph(Callback):
    """Records the training step, the optimizer's step and the validation step, and replays them.

    A step of a small net is hundreds of kernels of microseconds, and the host takes longer to start
    them than the GPU to run them. Lightning's loop stays as it is: `training_step` replays the
    augmentation, forward pass, loss, scores and backward pass, and the hooks after it see the
    gradients as ever. The first steps are taken one kernel at a time. Each recording is compared
    with the step it stands for before it is used, and where that fails, or CUDA refuses to record,
    the run goes on without, with a warning.

    In a step's hooks, `batch` is what the loader gave: images or their numbers, labels, draws.

    Args:
        cuda_graph: True, False, or "auto": wherever it can be had.
    """

    def __init__(self, cuda_graph: bool | str = "auto") -> None:
        self.choice = cuda_graph

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        chosen, reason = decide(self.choice, trainer, pl_module)
        if chosen or pl_module.device.type == "cuda":
            log.info(f"{'cuda graph':<12}{'on' if chosen else 'off'}: {reason}")
        if chosen:
            pl_module.graphs = Graphs(trainer, pl_module)  # type: ignore[assignment]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:  # whatever an epoch's start has changed
            graphs = pl_module.graphs
            if isinstance(graphs, Graphs) and graphs.outdated():
                graphs.close()
                pl_module.graphs = Graphs(trainer, pl_module)  # type: ignore[assignment]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _close(pl_module)  # before the net leaves the device

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        _close(pl_module)


def _close(module: LightningModule) -> None:
    if isinstance(module.graphs, Graphs):
        module.graphs.close()
        module.graphs = None  # type: ignore[assignment]


def decide(choice: bool | str, trainer: Trainer, module: LightningModule) -> tuple[bool, str]:
    """Whether to record the steps of this training, and why."""
    if choice is False:
        return False, "cuda_graph=false"
    profiled = not isinstance(trainer.profiler, PassThroughProfiler)  # type: ignore[attr-defined]
    obstacles = (
        (module.device.type != "cuda", "on CUDA devices alone"),
        (trainer.world_size > 1, "with one device alone"),
        (trainer.accumulate_grad_batches > 1, "not with trainer.accumulate_grad_batches"),
        (trainer.precision == "16-mixed", "not with 16-mixed, whose scaler waits for the GPU"),
        (isinstance(trainer.optimizers[0], SAM), "not with optimizer=sam, of two passes a step"),
        (profiled, "not with a profiler, which would see one kernel"),
        (torch.is_anomaly_enabled(), "not with trainer.detect_anomaly"),
    )
    for there, words in obstacles:
        if there:
            return False, words
    return True, f"cuda_graph={str(choice).lower()}"


class Different(RuntimeError):
    """A replay did not do what the step does."""


class Recording:
    """A CUDA graph of `step`, made by one that counts: when this returns, a step has been taken.

    Args:
        step: works on tensors that stay where they are.
        state: the tensors that it changes, by kind.
        results: those that it makes.
        stream: where it is run and recorded, not the current one.

    Raises:
        RuntimeError: CUDA refuses, or a replay differs; everything is as it was before.
    """

    def __init__(
        self,
        step: Callable[[], None],
        state: Callable[[], dict[str, Sequence[Tensor]]],
        results: Callable[[], dict[str, Sequence[Tensor]]],
        stream: Any,
        device: torch.device,
    ) -> None:
        before = _copies(state())
        random = torch.cuda.get_rng_state(device)

        def put_back() -> None:
            for name, tensors in state().items():
                for tensor, value in zip(tensors, before[name], strict=True):
                    tensor.copy_(value)
            torch.cuda.set_rng_state(random, device)

        try:
            on_stream(stream, step)
            expected = _copies(state()), _copies(results())
            put_back()
            self._graph = torch.cuda.CUDAGraph()
            # Loader threads and NCCL's watchdog may use CUDA meanwhile.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                step()
            self._graph.replay()
            _compare(
                {k: _minus(v, before[k]) for k, v in state().items()},
                {k: _minus(v, before[k]) for k, v in expected[0].items()},
            )
            _compare(results(), expected[1])
        except Exception:
            put_back()
            raise

    def replay(self) -> None:
        self._graph.replay()


def on_stream(stream: Any, step: Callable[[], None]) -> None:
    """Run `step` on another stream, in its place among what this one does."""
    here = torch.cuda.current_stream()
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        step()
    here.wait_stream(stream)


def _copies(groups: dict[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
    return {name: [t.detach().clone() for t in tensors] for name, tensors in groups.items()}


def _minus(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    return [a.detach() - b for a, b in zip(tensors, others, strict=True)]


def _compare(found: Any, expected: Any) -> None:
    for name, tensors in found.items():
        apart = _length(_minus(tensors, expected[name]))
        if not bool(apart <= LIKE * _length(expected[name]) + 1e-6):
            raise Different(f"a replayed step gives another {name}")


def _length(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([t.detach().double().norm() for t in tensors]).norm()


class Graphs:
    """The recordings of one training: of its steps, its optimizer and its validation."""

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.module = module
        self.data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.stream = torch.cuda.Stream(module.device)
        self._recorded = self._now()
        self._training = _Replayed(self, self._train, training=True)
        self._validation = _Replayed(self, self._evaluate, training=False)
        self._update = _Update(self, trainer.optimizers[0])
        self.data.deferred = True

    def close(self) -> None:
        self.data.deferred = False
        self._update.close()
        del self._training, self._validation, self._update  # and with them the graphs' memory

    def outdated(self) -> bool:
        """Whether what learns has changed since, or the size of the images."""
        return self._now() != self._recorded

    def _now(self) -> tuple[list[bool], int]:
        learning = [parameter.requires_grad for parameter in self.module.parameters()]
        return learning, self.data.train_side

    def training_step(self, batch: Sequence[Tensor]) -> Tensor:
        """One batch, backward pass and all: the loss []."""
        loss = self._training(batch)
        self._update.armed = self._training.replayed
        return loss

    def validation_step(self, batch: Sequence[Tensor]) -> None:
        self._validation(batch)

    def without_autocast(self) -> Any:
        return torch.autocast(self.module.device.type, enabled=False)

    def _train(self, batch: Sequence[Tensor]) -> Tensor:
        for parameter in self.module.parameters():
            parameter.grad = None  # so that each replay writes it anew
        with self.without_autocast():  # which Lightning has on around a step
            images, labels = self.data.prepare(batch)
        loss: Tensor = self.module.loss_of(images, labels)  # type: ignore[operator]
        with self.without_autocast():
            loss.backward()
        return loss.detach()

    def _evaluate(self, batch: Sequence[Tensor]) -> Tensor:
        with self.without_autocast():
            images, labels = self.data.prepare(batch)
        logits: Tensor = self.module.score(images, labels, "val")  # type: ignore[operator]
        return logits

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.module.parameters() if p.grad is not None]


class _Replayed:
    """A step on batches of one shape: recorded once it has been taken a few times."""

    def __init__(
        self, graphs: Graphs, step: Callable[[Sequence[Tensor]], Tensor], training: bool
    ) -> None:
        self.graphs, self.step, self.training = graphs, step, training
        self.taken = 0
        self.graph: Recording | None = None
        self.failed = False
        self.replayed = False  # whether the last step has left its gradients where the graph does
        self.batch: list[Tensor] = []
        self.result: Tensor

    def __call__(self, batch: Sequence[Tensor]) -> Tensor:
        self.taken += 1
        self.replayed = True
        if self.graph is not None and self._fits(batch):
            for place, value in zip(self.batch, batch, strict=True):
                place.copy_(value, non_blocking=True)
            self.graph.replay()
            self._put_gradients()
        elif self.graph is None and not self.failed and self.taken > WARM_UP:
            self._record(batch)
        else:
            self._run(batch)
        return self.result

    def _run(self, batch: Sequence[Tensor]) -> None:
        self.replayed = False

        def step() -> None:
            self.result = self.step(batch)

        on_stream(self.graphs.stream, step)

    def _record(self, batch: Sequence[Tensor]) -> None:
        self.batch = [value.clone() for value in batch]

        def step() -> None:
            self.result = self.step(self.batch)

        def results() -> dict[str, Sequence[Tensor]]:
            gradients = {"gradient": self.graphs.gradients()} if self.training else {}
            return {"result": [self.result], **gradients}

        module = self.graphs.module
        try:
            self.graph = Recording(step, self._state, results, self.graphs.stream, module.device)
        except RuntimeError as error:
            self.failed = True
            _warn("the training step" if self.training else "the validation step", error)
            self._run(batch)
        self.gradients = [(p, p.grad) for p in module.parameters() if p.grad is not None]

    def _put_gradients(self) -> None:
        # Somebody may have set them to None, which the graph would not know of.
        if self.training and self.gradients[0][0].grad is not self.gradients[0][1]:
            for parameter, gradient in self.gradients:
                parameter.grad = gradient

    def _state(self) -> dict[str, Sequence[Tensor]]:
        module: Any = self.graphs.module
        if not self.training:
            return {"score": module.val_tally.states()}
        state = {"score": module.train_tally.states()}
        if buffers := list(module.net.buffers()):
            state["statistics"] = buffers
        return state

    def _fits(self, batch: Sequence[Tensor]) -> bool:
        return [(t.shape, t.dtype) for t in batch] == [(t.shape, t.dtype) for t in self.batch]


class _Update:
    """In place of the optimizer's own `step`: the same, replayed, where it is a fused one.

    The learning rate is a float32 on the device, from the first step on, so that a resumed run
    rounds as one that was never stopped; to everybody else it stays the number that schedules set.
    """

    def __init__(self, graphs: Graphs, optimizer: Optimizer) -> None:
        self.graphs, self.optimizer = graphs, optimizer
        self.armed = False  # whether the gradients lie where those of the next steps will
        self.graph: Recording | None = None
        self.fused = all(group.get("fused") for group in optimizer.param_groups)
        self.failed = False
        self.plain = optimizer.step
        device = graphs.module.device
        number = functools.partial(torch.zeros, (), dtype=torch.float32, device=device)
        self.rates = [number() for _ in optimizer.param_groups]
        self.set: list[float] = []
        self.others: list[Any] = []
        step = functools.update_wrapper(lambda closure=None: self.step(closure), self.plain)
        optimizer.step = step  # type: ignore[method-assign]

    def close(self) -> None:
        self.optimizer.step = self.plain  # type: ignore[method-assign]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if not self.fused:
            return self.plain(closure)
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        self._set_rates()
        if self.failed or not self.armed:
            self._with_rates()
        elif self.graph is None:
            self._record()
        elif self.others == self._others():
            self.graph.replay()
        else:
            self._with_rates()  # somebody has changed the momentum, or the decay
        return loss

    def _record(self) -> None:
        self.others = self._others()
        try:
            self.graph = Recording(
                self._with_rates, self._state, dict, self.graphs.stream, self.rates[0].device
            )
        except RuntimeError as error:
            self.failed = True
            _warn("the optimizer's step", error)
            self._with_rates()

    def _with_rates(self) -> None:
        groups = self.optimizer.param_groups
        kept = [dict(group) for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = torch.cuda.is_current_stream_capturing()
        try:
            self.plain()
        finally:
            for group, values in zip(groups, kept, strict=True):
                group.update(values)

    def _set_rates(self) -> None:
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        if rates != self.set:
            for place, rate in zip(self.rates, rates, strict=True):
                place.fill_(rate)
        self.set = rates

    def _others(self) -> list[Any]:
        return [
            {k: v for k, v in group.items() if k not in ("params", "lr", "initial_lr")}
            for group in self.optimizer.param_groups
        ]

    def _state(self) -> dict[str, Sequence[Tensor]]:
        every = (p for group in self.optimizer.param_groups for p in group["params"])
        learning = [p for p in every if p.grad is not None]
        kept = [
            value
            for p in learning
            for value in self.optimizer.state[p].values()
            if isinstance(value, Tensor)
        ]
        return {"weights": [p.detach() for p in learning], **({"moments": kept} if kept else {})}


def _warn(what: str, error: RuntimeError) -> None:
    message = (str(error).strip().splitlines() or ["no message"])[0]
    log.warning(
        f"cuda graph: {what} is not replayed ({type(error).__name__}: {message}); "
        "the run goes on kernel by kernel"
    )

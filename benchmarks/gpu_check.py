"""`make gpu-check`: what a new machine with a GPU can do, and whether all of this works on it.

Each step is a process of its own and leaves a row: what was measured, what it should be. The first
says whether CUDA works at all; speed comes last, when the card is warm and alone. The rows stand in
`outputs/gpu-check/<date>/` as check.json and report.md; the status is 1 where one failed.
"""

import argparse
import contextlib
import csv
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.data import NOISE, photographs
from resnet_lab.config.compose import APP, compose
from resnet_lab.run import gpu
from resnet_lab.screen import console, duration

PRETENDED = APP / "tests" / "pretended.py"
PATIENCE = 300  # seconds that a step may take, but for those of speed
SMALL = ("data=digits", "model=cifar_resnet", "model.depth=8", "model.width=0.25")
QUICK = (*SMALL, "data.batch_size=32", "trainer.max_epochs=2", "callbacks.last.seconds=0")
PLAIN = "callbacks=[checkpoints,nan_guard,epoch_log,compile_net,cuda_graph]"
EVERYTHING = "callbacks=[default,pictures,ema,grad_norm,early_stopping]"
STEPS_AN_EPOCH = 351  # of CIFAR-10, less a tenth for validation, in batches of 128
NETS = ("resnet20", "resnet56", "resnet110", "resnet18")
SETTLED = 10  # steps of an epoch in which kernels are chosen and graphs recorded


class Row(NamedTuple):
    """passed: None where it could not be tried; `figure` says why."""

    passed: bool | None
    figure: str
    limit: str = ""


class Check(NamedTuple):
    """What a step knows: where it may write, and whether its GPU is a pretended one."""

    work: Path
    pretend: bool

    def config(self, name: str, *overrides: str) -> Any:
        folders = (f"run_dir={self.work / name}", f"data.cache_dir={self.work / 'cache'}")
        few = ("data.train_size=512",) if self.pretend else ()  # of digits: it is a slow GPU
        cfg, _ = compose([*few, *overrides, *folders])
        return cfg

    def train(self, name: str, *overrides: str, callbacks: tuple[Any, ...] = ()) -> dict[str, Any]:
        """The result of a run in this process."""
        from resnet_lab.run import build, training

        make = build.build

        def with_callbacks(cfg: Any) -> build.Parts:
            parts = make(cfg)
            parts.trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
            return parts

        training.build = with_callbacks
        try:
            return training.train(self.config(name, *overrides))
        finally:
            training.build = make

    def command(self, *arguments: str, script: str = "train.py") -> list[str]:
        wrapped = [str(PRETENDED)] if self.pretend else []
        return [sys.executable, *wrapped, str(APP / script), *arguments]

    def run(
        self, *arguments: str, script: str = "train.py", **env: str
    ) -> subprocess.CompletedProcess[str]:
        """The same as a command."""
        return subprocess.run(
            self.command(*arguments, script=script),
            cwd=self.work,
            env=os.environ | env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def photographs(self) -> Path:
        """A folder of photographs, made once."""
        folder = self.work / "photos"
        if not folder.exists():
            photographs(folder, 20, copies=4)
        return folder

    def folders(self, name: str) -> tuple[str, str]:
        return f"hydra.run.dir={self.work / name}", f"data.cache_dir={self.work / 'cache'}"


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return ((done.stderr.strip() or done.stdout.strip() or "no output").splitlines() or [""])[-1]


# ---------------------------------------------------------------- the steps


def preflight(check: Check) -> Row:
    """Driver, torch and nvidia-smi agree on what there is; torch has kernels for it."""
    import torch

    from resnet_lab.run import machine

    usable = machine.usable()
    if not usable.n:
        return Row(False, f"no GPU: {usable.fault or 'none is there'}", "one GPU or more")
    driver = gpu.driver()
    properties = torch.cuda.get_device_properties(0)
    kind = f"sm_{properties.major}{properties.minor}"
    free, total = (n / 2**30 for n in torch.cuda.mem_get_info(0))
    counts = {"torch": usable.n, "driver": len(driver.gpus), "slots": len(gpu.slots())}
    mig = any(name.startswith("MIG") for name in driver.gpus)
    agree = len(set(counts.values())) == 1 or mig or check.pretend
    kernels = torch.cuda.get_arch_list()
    compiled = kind in kernels or any(k[:4] == kind[:4] and k < kind for k in kernels)
    figure = (
        f"{properties.name}, {kind}, {free:.1f} of {total:.1f} GiB free{gpu.others(0)}; "
        f"driver CUDA {gpu.dotted(driver.version)}, torch {torch.__version__}; {counts}"
    )
    return Row(agree and (compiled or check.pretend), figure, "all counts equal; kernels for it")


def waits(check: Check) -> Row:
    """No step waits for the device, whatever the callbacks, the optimizer and the precision."""
    check.photographs()
    photos = ("data=imagefolder", f"data.root={check.work / 'photos'}", "data.workers=2")
    settings: dict[str, tuple[str, ...]] = {
        "default": (),
        "all callbacks": (EVERYTHING,),
        "adamw": ("optimizer=adamw", "trainer.gradient_clip_val=1"),
        "32": ("trainer.precision=32",),
        "eager": ("cuda_graph=false",),
        "16-mixed": ("trainer.precision=16-mixed", "optimizer.lr=0.01"),
    }
    if not check.pretend:  # its thread that pins memory is not pretended
        settings["photographs"] = (*photos, "model=resnet18", "model.depth=18", PLAIN)
    found: dict[str, float] = {}
    for name, overrides in settings.items():
        counter = _counter(check)
        batch = "data.batch_size=4" if name == "photographs" else "data.batch_size=32"
        check.train(
            f"waits {name}".replace(" ", "-"), *QUICK, *overrides, batch, callbacks=(counter,)
        )
        found[name] = counter.n / max(1, counter.steps)
    scaler = found.pop("16-mixed")
    figure = ", ".join(f"{k} {v:g}" for k, v in {**found, "16-mixed": scaler}.items())
    return Row(not any(found.values()) and scaler <= 1, figure, "0 a step; 16-mixed 1")


def _counter(check: Check) -> Any:
    """A callback that counts what an epoch's later steps wait for."""
    import torch
    from lightning.pytorch import Callback

    class Waits(Callback):
        n = steps = 0

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            if index < SETTLED or not trainer.current_epoch:
                return
            self.steps += 1
            if check.pretend:
                world = _world()
                world.counting = True
            else:
                torch.cuda.set_sync_debug_mode("warn")
                self._caught = warnings.catch_warnings(record=True)
                self._list = self._caught.__enter__()
                warnings.simplefilter("always")

        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            index = rest[2]
            if index < SETTLED or not trainer.current_epoch:
                return
            if check.pretend:
                world = _world()
                world.counting = False
                new = {k: n for k, n in world.waits.items() if "save_checkpoint" not in k}
                self.n = sum(new.values())
            else:
                torch.cuda.set_sync_debug_mode("default")
                self._caught.__exit__(None, None, None)
                last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
                if not last:  # whose end saves a checkpoint
                    self.n += sum("synchroniz" in str(w.message) for w in self._list)

    return Waits()


def _world() -> Any:
    return importlib.import_module("pretend_cuda").World.current


def repeated(check: Check) -> Row:
    """The same run twice, and one that is stopped and resumed, end with the same weights."""
    figures = []
    passed = True
    for deterministic in ("true", "false"):
        names = {}
        for net in ("resnet8",) if check.pretend else ("resnet8", "cnn"):
            model = QUICK if net == "resnet8" else (*QUICK[:1], "model=textbook_cnn", *QUICK[4:])
            options = (*model, PLAIN, f"trainer.deterministic={deterministic}")
            base = f"repeated-{deterministic}-{net}"
            for copy in ("one", "two"):
                check.train(f"{base}-{copy}", *options)
            with contextlib.suppress(SystemExit):
                check.train(f"{base}-stopped", *options, callbacks=(_kick(),))
            folder = check.work / f"{base}-stopped"
            check.train(f"{base}-stopped", *options, f"resume={folder}")
            names[net] = [
                _apart(check.work / f"{base}-one", check.work / f"{base}-{other}")
                for other in ("two", "stopped")
            ]
        apart = {net: f"{a[0]}+{b[0]} (by {max(a[1], b[1]):.1g})" for net, (a, b) in names.items()}
        figures.append(f"deterministic={deterministic}: {apart}")
        if deterministic == "true":
            passed = all(n == 0 for pair in names.values() for n, _ in pair)
    return Row(passed, "; ".join(figures), "deterministic: 0 tensors differ; else as measured")


def _kick() -> Any:
    """A callback that sends SIGTERM in the second epoch."""
    from lightning.pytorch import Callback

    class Kick(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == trainer.num_training_batches + 7:
                os.kill(os.getpid(), signal.SIGTERM)

    return Kick()


def _apart(one: Path, other: Path) -> tuple[int, float]:
    """How many tensors of two last checkpoints differ, and by how much at most."""
    from resnet_lab.run import checkpoint_io

    states = [
        checkpoint_io.load(f / "checkpoints" / "last.ckpt")["state_dict"] for f in (one, other)
    ]
    by = [
        float((states[0][key].double() - states[1][key].double()).abs().max()) for key in states[0]
    ]
    return sum(b != 0 for b in by), max(by)


def elsewhere(check: Check) -> Row:
    """A run of this GPU goes on without one, and is evaluated alike with and without."""
    with contextlib.suppress(SystemExit):
        check.train("elsewhere", *QUICK, PLAIN, callbacks=(_kick(),))
    folder = check.work / "elsewhere"
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    plain = check._replace(pretend=False)
    done = plain.run(f"resume={folder}", **hidden)
    if done.returncode:
        return Row(False, f"the resumed run ended with {done.returncode}: {last_line(done)}")
    rows = {}
    for where, env, at in (("here", {}, check), ("host", hidden, plain)):
        out = check.work / f"elsewhere-{where}.csv"
        photos = str(check.photographs() / "test")
        done = at.run(*("predict", str(folder), photos, "--out", str(out)), script=CLI, **env)
        if done.returncode:
            return Row(False, f"predict {where}: {last_line(done)}")
        rows[where] = list(csv.DictReader(out.open()))
    pairs = list(zip(rows["here"], rows["host"], strict=True))
    same = sum(a["label_1"] == b["label_1"] for a, b in pairs)
    apart = max(abs(float(a["probability_1"]) - float(b["probability_1"])) for a, b in pairs)
    figure = (
        f"resumed on the host; {same} of {len(pairs)} labels equal, probabilities by {apart:.1e}"
    )
    return Row(same == len(pairs) and apart < 2e-3, figure, "all labels; 2e-3")


CLI = "src/resnet_lab/cli.py"


def trouble(check: Check) -> Row:
    """A rate that explodes, and a GPU without room, end in one sentence and leave a whole run."""
    said = []
    ways: dict[str, tuple[str, ...]] = {
        "fused": (),
        "eager": ("cuda_graph=false",),
        "16-mixed": ("trainer.precision=16-mixed",),
    }
    for name, overrides in ways.items():
        rate = ("optimizer.lr=1000000000", "scheduler=constant")
        done = check.run(*QUICK, PLAIN, *rate, *overrides, *check.folders(f"nan-{name}"))
        lines = done.stderr.strip().splitlines()
        said.append(done.returncode == 1 and len(lines) == 1 and "nan or infinite" in lines[0])
    if not check.pretend:
        import torch

        free, _ = torch.cuda.mem_get_info()
        filler = torch.empty(max(1, free - 600 * 2**20), dtype=torch.uint8, device="cuda")
        big = ("model.width=16", "data.batch_size=1024")
        done = check.run(*QUICK, PLAIN, *big, *check.folders("full"))
        said.append(done.returncode == 1 and "memory" in last_line(done))
        said.append(done.stderr.count("\n") <= 1)
        del filler
    return Row(all(said), f"{sum(said)} of {len(said)} as they should", "all")


def sweep(check: Check) -> Row:
    """Four jobs on one GPU finish; a sweep that is stopped or killed leaves no process there."""
    if check.pretend:
        return Row(None, "skipped: jobs are given GPUs that a driver names")
    jobs = ("-m", "seed=range(4)", "sweep.jobs_per_device=4", *SMALL, "data.batch_size=32")
    cache = f"data.cache_dir={check.work / 'cache'}"
    done = check.run(*jobs, cache, "sweep.name=four", "trainer.max_epochs=2")
    states = [
        json.loads(p.read_text())["device_name"]
        for p in (check.work / "outputs/sweeps/four").glob("*/result.json")
    ]
    figures, passed = [f"{len(states)} of 4 on {set(states)}"], done.returncode == 0
    for name, number in (("stopped", signal.SIGTERM), ("killed", signal.SIGKILL)):
        log = (check.work / f"{name}.log").open("w")
        process = subprocess.Popen(
            check.command(*jobs, cache, f"sweep.name={name}", "trainer.max_epochs=2000"),
            cwd=check.work,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        time.sleep(25)
        process.send_signal(number)
        process.wait(90)
        time.sleep(8)
        left = gpu.others(0)
        figures.append(f"{name}: {left or 'nothing left'}")
        passed = passed and not left
    return Row(passed and len(states) == 4, "; ".join(figures), "4 of 4, nothing left")


def two(check: Check) -> Row:
    """Two GPUs compute what one computes, and a run on them is stopped and resumed."""
    import torch

    if check.pretend or torch.cuda.device_count() < 2:
        return Row(None, "skipped: one GPU")
    both = ("trainer.devices=2", *QUICK, PLAIN, "model.norm=none", "model.zero_init_residual=true")
    figures, passed = [], True
    for devices in (1, 2):
        done = check.run(*both, f"trainer.devices={devices}", *check.folders(f"two-{devices}"))
        passed = passed and done.returncode == 0
    losses = [
        json.loads((check.work / f"two-{n}" / "result.json").read_text())["test/loss"]
        for n in (1, 2)
    ]
    figures.append(f"test loss apart by {abs(losses[0] - losses[1]):.1e}")
    done = check.run(*both, "callbacks.last.pause_after=1", *check.folders("two-paused"))
    again = check.run(f"resume={check.work / 'two-paused'}", "callbacks.last.pause_after=null")
    figures.append(f"resumed with status {again.returncode}")
    passed = passed and abs(losses[0] - losses[1]) < 1e-2 and again.returncode == 0
    return Row(passed, "; ".join(figures), "1e-2; 0")


def graph(check: Check) -> Row:
    """The step as a graph, and as a compiled net, gives what it gives kernel by kernel."""
    losses: dict[str, float] = {}
    ways: dict[str, tuple[str, ...]] = {
        "eager": ("cuda_graph=false",),
        "graph": ("cuda_graph=true",),
    }
    if not check.pretend:
        ways["compiled"] = ("cuda_graph=false", "compile=true")
        ways["compiled graph"] = ("cuda_graph=true", "compile=true")
    heard = _Heard()
    logging.getLogger("resnet_lab").addHandler(heard)
    for name, overrides in ways.items():
        run = f"graph-{name.replace(' ', '-')}"
        losses[name] = check.train(run, *QUICK, PLAIN, *overrides)["val/loss"]
    logging.getLogger("resnet_lab").removeHandler(heard)
    apart = max(abs(loss - losses["eager"]) for loss in losses.values())
    told = "; ".join(heard.warnings) or "no fall-back"
    figure = ", ".join(f"{k} {v:.5f}" for k, v in losses.items())
    return Row(apart < 2e-2 and not heard.warnings, f"val loss {figure}; {told}", "2e-2; none")


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.warnings.append(record.getMessage())


def speed(check: Check) -> Row:
    """Seconds an epoch of CIFAR-10 in batches of 128: bare loops, and ours, in turns."""
    if check.pretend:
        return Row(None, "skipped: a pretended GPU has no speed")
    from benchmarks.turns import Entry, race

    figures, passed = [], True
    for net in NETS:
        options = {"work": check.work, "overrides": (f"model={net}",), "steps": 200}
        entries = {
            f"bare {mode}": Entry(
                "benchmarks.training.bare", {**options, "setting": ("bf16", "channels_last", mode)}
            )
            for mode in ("eager", "compiled", "graphed")
        }
        for name, own in (("ours", "auto"), ("ours eager", "false")):
            overrides = (f"model={net}", f"cuda_graph={own}", "compile=false")
            entries[name] = Entry("benchmarks.training.ours", {**options, "overrides": overrides})
        turns, errors = race(entries, 2, check.work)
        seconds = {
            name: median(t["seconds"] / t["steps"] for t in rounds) * STEPS_AN_EPOCH
            for name, rounds in turns.items()
        }
        share = seconds.get("bare graphed", 0) / seconds["ours"] if "ours" in seconds else 0
        passed = passed and share >= 0.8 and not errors
        words = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
        figures.append(f"{net}: {words}; ours at {share:.0%} of the limit {errors or ''}")
    return Row(passed, " | ".join(figures), "ours at 80% of the whole step in a graph")


def together(check: Check) -> Row:
    """Jobs an hour of resnet20, 5 epochs of CIFAR-10's size, with so many on the GPU at once."""
    if check.pretend:
        return Row(None, "skipped: a pretended GPU has no speed")
    figures = []
    for n in (1, 2, 4, 8):
        began = time.monotonic()
        check.run(
            *("-m", f"sweep.name=together{n}", f"sweep.jobs_per_device={n}", f"seed=range({n})"),
            *(*NOISE, "model=resnet20", "trainer.max_epochs=5", PLAIN),
            f"data.cache_dir={check.work / 'cache'}",
            PYTHONPATH=str(APP),
        )
        finished = len(list((check.work / f"outputs/sweeps/together{n}").glob("*/result.json")))
        figures.append(f"{n}: {finished * 3600 / (time.monotonic() - began):.0f}")
    return Row(True, "jobs an hour by jobs a GPU: " + ", ".join(figures), "as measured")


def accuracy(check: Check) -> Row:
    """Digits are learned."""
    epochs = "trainer.max_epochs=15"
    if check.pretend:
        return Row(None, "skipped: 15 epochs take minutes on a pretended GPU")
    accuracy = check.train("accuracy", "data=digits", "model=resnet20", epochs)["test/acc"]
    return Row(accuracy > 0.97, f"{accuracy:.4f}", "above 0.97")


STEPS: dict[str, Callable[[Check], Row]] = {
    step.__name__: step
    for step in (
        *(preflight, waits, repeated, elsewhere, trouble, sweep, two, graph),
        *(accuracy, speed, together),
    )
}
OF_SPEED = ("speed", "together")


# ---------------------------------------------------------------- the parent


def step(name: str, check: Check) -> None:
    """Run one step and write its row; the main function of a step's process."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with _world_if(check.pretend):
        try:
            row = STEPS[name](check)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            first = (str(error).splitlines() or [""])[0]
            row = Row(False, f"{type(error).__name__}: {first}")
    (check.work / f"{name}.json").write_text(json.dumps(row._asdict()))


@contextlib.contextmanager
def _world_if(pretend: bool) -> Iterator[None]:
    if not pretend:
        yield
        return
    for module in ("torch._dynamo", "resnet_lab.run.training"):  # must meet torch as it is
        importlib.import_module(module)
    sys.path.insert(0, str(PRETENDED.parent))
    with importlib.import_module("pretend_cuda").World():
        yield


def check(out: Path, names: list[str], pretend: bool) -> int:
    """Run the steps, show and write their rows; the exit status."""
    work = out / "work"
    work.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for name in names:
        began = time.monotonic()
        row = _in_a_process(name, work, pretend)
        seconds = round(time.monotonic() - began, 1)
        rows.append({"name": name, "seconds": seconds, **row._asdict()})
        word = {True: "passed", False: "FAILED", None: "skipped"}[row.passed]
        console.print(f"{name:<10} {word:<8} {duration(seconds):>6}  {row.figure}", soft_wrap=True)
        if name == "preflight" and not row.passed:
            break  # what follows would say nothing
    versions = {n: version(n) for n in ("torch", "torchvision", "lightning")}
    content = {"pretended": pretend, "versions": versions, "rows": rows}
    (out / "check.json").write_text(json.dumps(content, indent=1) + "\n")
    (out / "report.md").write_text(_markdown(content))
    console.print(f"\nwritten to {out}", soft_wrap=True)
    return int(any(row["passed"] is False for row in rows))


def _in_a_process(name: str, work: Path, pretend: bool) -> Row:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--step", name, "--out", str(work)]
    limit = PATIENCE * (4 if name in OF_SPEED else 1)
    with (work / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [*command, *(["--pretend"] if pretend else [])],
            cwd=APP,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return Row(False, f"not done after {limit} seconds; see work/{name}.log")
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    try:
        return Row(**json.loads((work / f"{name}.json").read_text()))
    except FileNotFoundError:
        return Row(False, f"its process ended with status {status}; see work/{name}.log")


def _markdown(content: dict[str, Any]) -> str:
    lines = ["| step | | seconds | measured | should be |", "|---|---|---|---|---|"]
    for row in content["rows"]:
        word = {True: "passed", False: "**failed**", None: "skipped"}[row["passed"]]
        figure = row["figure"].replace("|", "/")
        lines.append(f"| {row['name']} | {word} | {row['seconds']} | {figure} | {row['limit']} |")
    title = "GPU check" + (", on a pretended GPU" if content["pretended"] else "")
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    return f"# {title}\n\n{versions}\n\n" + "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--short", action="store_true", help="without the steps of speed")
    parser.add_argument(
        "--only", default=",".join(STEPS), metavar="STEPS", help=f"some of {','.join(STEPS)}"
    )
    parser.add_argument("--out", type=Path, help="folder (outputs/gpu-check/<date>_<time>)")
    parser.add_argument(
        "--pretend", action="store_true", help="on a GPU that is not there, to see that it runs"
    )
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step(options.step, Check(options.out, options.pretend))
        return 0
    names = [name for name in options.only.split(",") if name]
    if unknown := [name for name in names if name not in STEPS]:
        parser.error(f"--only {','.join(unknown)}: possible are {', '.join(STEPS)}")
    if options.short:
        names = [name for name in names if name not in OF_SPEED]
    out = options.out or Path("outputs/gpu-check", datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    if out.exists():
        parser.error(f"--out {out}: it exists; name another folder")
    return check(out.absolute(), names, options.pretend)


if __name__ == "__main__":
    sys.exit(main())

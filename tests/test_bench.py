"""The benchmark: that it runs, compares within a round, and says what failed. No timings."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from resnet_lab.bench import process, show
from resnet_lab.bench.gate import Entry, Failed, ask, race
from resnet_lab.bench.noise import MEAN, STD, Noise, photographs
from resnet_lab.bench.pipeline import masked
from resnet_lab.bench.run import errors

# Contenders that need no torch. `work` is where they leave marks.
TOYS = """
import os, time

def counter(gate, mark, work):
    gate.wait(ready=True)
    turn = 0
    while True:
        turn += 1
        with open(work / "order", "a") as file:
            file.write(mark)
        gate.wait(turn=turn)

def counter_alone(gate):
    gate.wait(ready=True)

def unready(gate):
    raise RuntimeError("no net of this name")

def dying(gate):
    gate.wait()
    os._exit(7)

def sleeper(gate, work):
    if os.fork() == 0:
        (work / f"{os.getpid()}.child").touch()
        time.sleep(600)
    gate.wait()
    (work / "asleep").touch()
    time.sleep(600)
"""


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """The folder of a module `toys`, which contenders started in this test can import."""
    (tmp_path / "toys.py").write_text(TOYS)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ------------------------------------------------------------------ gates


def test_contenders_take_turns_after_one_that_does_not_count(toys):
    entries = {m: Entry("toys.counter", {"mark": m, "work": toys}) for m in "ab"}
    figures, failed = race(entries, rounds=3, logs=toys)
    assert failed == {}
    assert figures == {m: [{"turn": turn} for turn in (2, 3, 4)] for m in "ab"}
    order = (toys / "order").read_text()
    assert sorted(order[:2]) == ["a", "b"]  # the turn that does not count, both at once
    assert order[2:] == "ababab"


def test_a_contender_that_fails_is_named_and_the_others_go_on(toys):
    entries = {
        "unready": Entry("toys.unready"),
        "dying": Entry("toys.dying"),
        "good": Entry("toys.counter", {"mark": "g", "work": toys}),
    }
    figures, failed = race(entries, rounds=2, logs=toys)
    assert list(figures) == ["good"]
    assert len(figures["good"]) == 2
    assert "RuntimeError: no net of this name" in failed["unready"]
    assert "status 7" in failed["dying"]
    assert "Traceback" in (toys / "unready.log").read_text()


def test_asking_gives_what_a_contender_says_of_its_set_up(toys):
    assert ask("toys.counter_alone", toys) == {"ready": True}
    with pytest.raises(Failed, match="no net of this name"):
        ask("toys.unready", toys)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_an_interrupt_leaves_no_process_behind(toys):
    program = (
        "import signal; from pathlib import Path; from resnet_lab.bench.gate import Entry, race\n"
        "if __name__ == '__main__':\n"
        # Tests that run in the background have inherited that it is ignored.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"    work = Path({str(toys)!r})\n"
        "    race({'s': Entry('toys.sleeper', {'work': work})}, 1, work)\n"
    )
    (toys / "program.py").write_text(program)
    parent = subprocess.Popen([sys.executable, str(toys / "program.py")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (toys / "asleep").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (child,) = (int(path.stem) for path in toys.glob("*.child"))
    assert alive(child)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=30) != 0
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


# ------------------------------------------------------------------ figures


def segment(seconds, **more):
    return {"seconds": seconds, "images": 1000, "steps": 10, **more}


def test_ratios_are_taken_within_each_round():
    # The machine halves its speed from round to round, and ours is always 0.8 of the limit.
    limit = [segment(1.0), segment(2.0), segment(4.0)]
    ours = [segment(1.25), segment(2.5), segment(5.0)]
    assert show.ratios(ours, limit) == pytest.approx((0.8, 0.8, 0.8))
    assert show.speeds(ours).median == pytest.approx(400)


def test_the_end_of_an_epoch_is_spread_over_a_whole_epoch():
    # 10 of 351 steps: the epoch's end of 35.1 s adds 1 s to their 1 s.
    assert show.speed(segment(1.0, boundary_seconds=35.1)) == pytest.approx(500)


def results(training):
    return {
        "machine": {"system": "a computer", "memory_gb": 8.0, "versions": {"torch": "2.15"}},
        "settings": {"rounds": 3, "quick": False},
        "load_at_start": (0.0, 0, 0),
        "load_at_end": (0.0, 0, 0),
        "seconds": 60.0,
        "parts": {"training": training},
        "errors": errors(training),
    }


def test_the_report_says_which_target_holds_and_what_failed():
    training = {
        "rounds": {
            "limit": [segment(1.0)] * 3,
            "ours": [segment(1.25)] * 3,
            "common style": [segment(5.0)] * 3,
        },
        "errors": {},
        "deep": {"rounds": {}, "errors": {"limit": "limit: out of memory"}},
    }
    text = show.text(results(training))
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if "|" in line}
    assert "0.800" in lines["ResNet-20: ours / limit"]
    assert lines["ResNet-20: ours / limit"].split("|")[-2].strip() == "no"
    assert lines["ResNet-20: ours / common style"].split("|")[-2].strip() == "yes"
    assert "ResNet-56: ours / limit" not in lines
    assert "FAILED limit: limit: out of memory" in text


def test_the_figure_is_drawn_for_what_there_is(tmp_path):
    training = {"rounds": {"limit": [segment(1.0)] * 3, "ours": [segment(1.25), segment(1.5)]}}
    show.figure(results(training), tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as picture:
        assert picture.width > 1000
    show.figure(results({"rounds": {}}), tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()


# ------------------------------------------------------------------ what is measured


def test_noise_has_the_shape_of_cifar10(tmp_path):
    source = Noise("unused", str(tmp_path), n=100)
    images = source.images("train", 32)
    assert (images.shape, images.dtype) == ((100, 32, 32, 3), np.uint8)
    assert len(source.labels("test")) == 20
    assert np.bincount(source.labels("train")).tolist() == [10] * 10
    again = Noise("unused", str(tmp_path), n=50)
    assert again.fingerprint("train") != source.fingerprint("train")
    means = (images / 255).mean(axis=(0, 1, 2))
    assert means == pytest.approx(MEAN, abs=0.01)
    assert (images / 255).std(axis=(0, 1, 2)) == pytest.approx(STD, abs=0.01)


def test_photographs_vary_in_size_and_stand_in_train_more_than_once(tmp_path):
    photographs(tmp_path, 4, copies=3, classes=2)
    train = sorted((tmp_path / "train").rglob("*.jpg"))
    assert len(train) == 4 * 3
    assert len({path.stat().st_ino for path in train}) == 4
    assert len(list((tmp_path / "test").rglob("*.jpg"))) == 2
    sizes = set()
    for path in train:
        with Image.open(path) as image:
            sizes.add(image.size)
    assert len(sizes) == 4
    assert all(400 <= width <= 1600 and height == width * 3 // 4 for width, height in sizes)


def test_the_masked_crop_cuts_every_image_at_one_of_81_places():
    torch.manual_seed(0)
    images = torch.arange(1, 4 * 3 * 4 * 4 + 1).view(4, 3, 4, 4).byte()  # all pixels differ
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in (MEAN, STD))
    padded = F.pad(images, (4,) * 4)
    places = [(top, left) for top in range(9) for left in range(9)]
    seen = set()
    for _, (batch, indices) in zip(range(200), masked(images, batch_size=2), strict=False):
        for image, index in zip(batch, indices.tolist(), strict=True):
            pixels = ((image * std + mean) * 255).round().byte()
            found = {
                (top, left)
                for top, left in places
                for cut in [padded[index, :, top : top + 4, left : left + 4]]
                if torch.equal(pixels, cut) or torch.equal(pixels, cut.flip(2))
            }
            assert found
            seen |= found
    assert seen == set(places)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_a_mapped_file_is_found(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, np.ones(20_000_000, dtype=np.uint8))
    before = process.mapped(os.getpid(), tmp_path)
    images = np.load(path, mmap_mode="r")
    assert before == 0
    assert images.sum() == 20_000_000
    assert process.mapped(os.getpid(), tmp_path) == pytest.approx(20, abs=2)
    assert os.getpid() in process.members(os.getpgrp())


def test_a_command_that_ends_otherwise_than_it_should_is_an_error(tmp_path):
    assert process.run(["modle=x"], tmp_path, expected=1) > 0
    with pytest.raises(RuntimeError, match=r"status 1, not 0: error: modle"):
        process.run(["modle=x"], tmp_path)


# ------------------------------------------------------------------ the command


def bench(*arguments, out):
    return subprocess.run(
        [sys.executable, "-m", "resnet_lab.cli", "bench", *arguments, "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_help_and_a_wrong_part_need_no_torch(tmp_path):
    program = "import sys; sys.modules['torch'] = None; from resnet_lab.cli import main; main()"
    for arguments, status, words in (
        (["--help"], 0, "bench"),
        (["bench", "--only", "a,z"], 1, "--only z: possible are a, b, c"),
        (["bench", "--rounds", "0"], 1, "--rounds 0"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=60,
        )
        assert done.returncode == status
        assert words in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_quick_bench_leaves_figures_and_no_scratch_files(tmp_path):
    out = tmp_path / "bench"
    done = bench("--quick", "--only", "f", out=out)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((out / "bench.json").read_text())
    rounds = results["parts"]["overhead"]["rounds"]
    assert {name: len(turns) for name, turns in rounds.items()} == {
        "bare loop": 1,
        "ours": 1,
        "Trainer, logged every step": 1,
        "Trainer, nothing logged": 1,
    }
    assert all(turn["images"] == 16 * turn["steps"] for (turn,) in rounds.values())
    assert rounds["ours"][0]["boundary_seconds"] > 0
    assert "cost per step" in done.stdout
    assert (out / "bench.md").read_text() in done.stdout
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.md"]


@pytest.mark.slow
def test_a_whole_quick_bench_runs(tmp_path):
    done = bench("--quick", out=tmp_path / "bench")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert results["errors"] == {}
    assert set(results["parts"]) == {
        "start-up",
        "training",
        "pipeline",
        "overhead",
        "memory",
        "gpu",
    }
    assert (tmp_path / "bench" / "bench.png").exists()

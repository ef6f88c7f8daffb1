"""The benchmark: turns, ratios within a round, and that it runs to its end. No timings."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from lab import ROOT
from PIL import Image
from sandbox import alive, wait_until

sys.path.insert(0, str(ROOT))

from benchmarks import process, show
from benchmarks.data import MEAN, STD, Noise
from benchmarks.turns import Entry, race

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


def test_contenders_take_turns_and_one_that_fails_stops_no_other(toys):
    entries = {
        "a": Entry("toys.counter", {"mark": "a", "work": toys}),
        "unready": Entry("toys.unready"),
        "dying": Entry("toys.dying"),
        "b": Entry("toys.counter", {"mark": "b", "work": toys}),
    }
    figures, failed = race(entries, rounds=3, logs=toys)
    assert figures == {mark: [{"turn": turn} for turn in (2, 3, 4)] for mark in "ab"}
    assert (toys / "order").read_text() == "ab" + "ababab"  # the first turns do not count
    assert "RuntimeError: no net of this name" in failed["unready"]
    assert "status 7" in failed["dying"]
    assert "Traceback" in (toys / "unready.log").read_text()


def test_an_interrupt_leaves_no_process_behind(toys):
    (toys / "program.py").write_text(
        "import signal; from pathlib import Path; from benchmarks.turns import Entry, race\n"
        "if __name__ == '__main__':\n"
        # Tests that run in the background have inherited that it is ignored.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"    work = Path({str(toys)!r})\n"
        "    race({'s': Entry('toys.sleeper', {'work': work})}, 1, work)\n"
    )
    command = [sys.executable, str(toys / "program.py")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env={"PYTHONPATH": str(ROOT)}) as run:
        wait_until(lambda: (toys / "asleep").exists() and any(toys.glob("*.child")), 60)
        (child,) = (int(path.stem) for path in toys.glob("*.child"))
        assert alive(child)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=30) != 0
    wait_until(lambda: not alive(child))


def segment(seconds, **more):
    return {"seconds": seconds, "images": 1000, "steps": 10, **more}


def test_ratios_are_taken_within_each_round():
    # The machine halves its speed from round to round, and ours is always 0.8 of the limit.
    limit = [segment(1.0), segment(2.0), segment(4.0)]
    ours = [segment(1.25), segment(2.5), segment(5.0)]
    assert show.ratios(ours, limit) == pytest.approx([0.8, 0.8, 0.8])
    assert show.spread([show.speed(s) for s in ours]) == "400 (200 to 800)"
    # 10 of 351 steps: the epoch's end of 35.1 s adds 1 s to their 1 s.
    assert show.speed(segment(1.0, boundary_seconds=35.1)) == pytest.approx(500)


def test_noise_has_the_shape_and_the_statistics_it_says(tmp_path):
    source = Noise("unused", str(tmp_path), n=100)
    images = source.images("train", 32)
    assert (images.shape, images.dtype) == ((100, 32, 32, 3), np.uint8)
    assert np.bincount(source.labels("train")).tolist() == [10] * 10
    assert len(source.labels("test")) == 20
    assert (images / 255).mean(axis=(0, 1, 2)) == pytest.approx(MEAN, abs=0.01)
    assert (images / 255).std(axis=(0, 1, 2)) == pytest.approx(STD, abs=0.01)


def test_a_command_that_ends_otherwise_than_it_should_is_an_error(tmp_path):
    assert process.run(["modle=x"], tmp_path, expected=1) > 0
    with pytest.raises(RuntimeError, match=r"status 1, not 0: error: modle"):
        process.run(["modle=x"], tmp_path)


@pytest.mark.slow
def test_a_quick_bench_leaves_tables_and_a_picture(tmp_path):
    out = tmp_path / "bench"
    parts = ["--only", "training,sweep"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", *parts, "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((out / "bench.json").read_text())
    (race_of_net,) = results["parts"]["training"]["nets"].values()
    assert [*race_of_net["rounds"]] == ["limit", "ours", "common style"]
    ways = results["parts"]["sweep"]["rounds"]
    assert all(turn["jobs"] == 2 for (turn,) in ways.values())
    assert (out / "bench.md").read_text() in done.stdout
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.md", "bench.png"]
    with Image.open(out / "bench.png") as picture:
        assert picture.width > 1000

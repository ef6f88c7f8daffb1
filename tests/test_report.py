"""The report: its figures by hand, every job accounted for, one file that needs nothing else."""

import csv
import itertools
import json
import math
import re
import shutil
from collections.abc import Callable, Iterable
from html import unescape
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from lab import CLI, board, without_torch
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from resnet_lab.cli import main
from resnet_lab.report import tensorboard
from resnet_lab.report.compose import compose
from resnet_lab.report.mean_runs import MeanRuns
from resnet_lab.report.runs import Run, Study, epochs, read, reference
from resnet_lab.report.stats import (
    binomial,
    curve,
    effects,
    frontier,
    holm,
    importance,
    spread,
    summarise,
)
from resnet_lab.report.write import report

# The 97.5% points of Student's t for 1 and 2 degrees of freedom, from any printed table.
T1, T2 = 12.7062, 4.30265

COLUMNS = "epoch,step,lr,train/loss,train/acc,val/loss,val/acc,images_per_second,train_seconds"
DEPTHS = {"resnet20": 20, "resnet32": 32}
COSTS = {20: (269722, 40551040), 32: (464154, 68862000)}


def make_run(
    folder: Path,
    overrides: list[str],
    val: float,
    test: float,
    status: str = "finished",
    n_epochs: int = 5,
    **more: Any,
) -> Path:
    """A run folder as training leaves it: what the typed overrides say, and a plausible curve."""
    typed = dict(override.split("=", 1) for override in overrides)
    model = typed.get("model", "resnet20")
    depth, seed = DEPTHS[model], int(typed.get("seed", 0))
    optimizer = typed.get("optimizer", "sgd")
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (folder / ".hydra" / "hydra.yaml").write_text(
        "hydra:\n  runtime:\n    version: 1.3.8\n    choices:\n"
        f"      optimizer: {optimizer}\n      model: {model}\n      hydra/env: default\n"
        "  verbose: false\n"
    )
    config = {
        "seed": seed,
        "run_dir": str(folder),
        "data": {"batch_size": 128, "seed": seed, "mean": [0.4 + seed / 1000, 0.5, 0.5]},
        "model": {"depth": depth, "shortcut": typed.get("model.shortcut", "A")},
        "optimizer": {"lr": 0.1, **({"betas": [0.9, 0.999]} if optimizer == "adam" else {})},
        "callbacks": {"best": {"dirpath": f"{folder}/checkpoints"}},
    }
    if "reference" in more:
        config["reference"] = more.pop("reference")
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    result = {
        "status": status,
        "model": model,
        "data": "cifar10",
        "params": COSTS[depth][0],
        "macs": COSTS[depth][1],
        "seed": seed,
        "batch_size": 128,
        "devices": 1,
        "precision": "bf16-mixed",
        "device_name": "Example CPU, 2 cores",
        "command": f"python train.py {' '.join(overrides)}",
        "git_commit": "0" * 40,
        "versions": {"python": "3.11.7", "torch": "2.15.0"},
        "epochs": n_epochs,
    }
    if status == "finished":
        result |= {"val/acc": val, "val/loss": 1 - val, "test/acc": test, "test/loss": 1 - test}
        result |= {"train_seconds": 30.0 * depth, "seconds": 31.0 * depth}
    (folder / "result.json").write_text(json.dumps(result | more))
    rows = [COLUMNS]
    for epoch in range(1, n_epochs + 1):
        share = 1 - math.exp(-4 * epoch / n_epochs)
        rows.append(
            f"{epoch},{epoch * 351},0.1,{2.3 - 2 * share * val},0.5,1.0,{val * share},900,9"
        )
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    return folder


def job(overrides: list[str], state: str = "finished", error: str | None = None) -> dict[str, Any]:
    parts = (override.rpartition("=") for override in overrides)
    name = ",".join(f"{key.rpartition('.')[2]}={value}" for key, _, value in parts)
    return {
        "folder": name,
        "overrides": ["data=cifar10", *overrides],
        "state": state,
        "seconds": 100.0,
        "attempts": 1,
        "error": error,
    }


def write_sweep(folder: Path, keys: list[str], jobs: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "name": folder.name,
        "command": "python train.py -m sweep.name=shortcuts model=resnet20,resnet32",
        "started": "2026-11-22T02:00:00+00:00",
        "updated": "2026-11-22T03:00:00+00:00",
        "keys": keys,
        "jobs": jobs,
    }
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


BONUS = {"A": 0.0, "B": 0.006, "C": 0.008, "none": -0.03}


def make_sweep(
    folder: Path, seeds: int = 3, n_epochs: int = 5, shortcuts: Iterable[str] = BONUS
) -> Path:
    """2 depths x 4 shortcuts x `seeds`, all finished; B and C help, none hurts the deeper more."""
    jobs = []
    grid = itertools.product(DEPTHS, shortcuts, range(seeds))
    for model, shortcut, seed in grid:
        overrides = [f"model={model}", f"model.shortcut={shortcut}", f"seed={seed}"]
        jobs.append(job(overrides))
        deeper = model == "resnet32"
        hurt = 0.02 if deeper and shortcut == "none" else 0
        noise = 0.001 * ((7 * seed + len(shortcut) * 3 + deeper) % 5)
        val = 0.88 + 0.01 * deeper + BONUS[shortcut] - hurt + noise
        make_run(folder / jobs[-1]["folder"], overrides, val, val - 0.005, n_epochs=n_epochs)
    return write_sweep(folder, ["model", "model.shortcut", "seed"], jobs)


def study_of(accuracies: dict[tuple[str, ...], tuple[float, float]], keys: list[str]) -> Study:
    """Finished runs alone: settings to (val, test) accuracy in percent."""
    runs = [
        Run(
            ",".join(setting),
            Path(),
            "finished",
            settings=dict(zip(keys, setting, strict=True)),
            result={"val/acc": val / 100, "test/acc": test / 100},
        )
        for setting, (val, test) in accuracies.items()
    ]
    return Study("study", [], keys, runs)


def results(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def text_of(page: str) -> str:
    """What a reader of the HTML sees."""
    page = re.sub(r"<(style|svg|script)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


# ------------------------------------------------------------------ figures


def test_spread_by_hand():
    # Deviations from the mean 91: -1, 0, 1; sum of squares 2; over n - 1 = 2 that is 1.
    found = spread([90.0, 91.0, 92.0])
    assert (found.n, found.mean, found.sd) == (3, 91.0, 1.0)
    assert found.high - found.mean == pytest.approx(T2 / math.sqrt(3), rel=1e-5)
    # Counted over 1,000 images, a standard error of sqrt(0.91 * 0.09 / 1000) comes to it.
    half = math.hypot(T2 / math.sqrt(3), 1.959964 * 100 * math.sqrt(0.91 * 0.09 / 1000))
    assert spread([90.0, 91.0, 92.0], 1000).low == pytest.approx(91 - half, rel=1e-5)


def test_below_three_runs_there_is_no_interval():
    assert math.isnan(spread([83.4, 83.4]).low)
    assert spread([83.4, 83.4]).sd == 0
    assert math.isnan(spread([90.0]).sd)
    assert spread([]).n == 0
    assert math.isnan(spread([]).mean)
    assert spread([90.0, math.nan]) == spread([90.0])


def test_an_interval_stays_within_what_an_accuracy_can_be():
    assert spread([99.0, 99.9, 95.0]).high == 100
    assert spread([1.0, 5.0, 0.0]).low == 0
    assert spread([1.0, 5.0, 0.0], percent=False).low < 0
    assert binomial(50, 100) == pytest.approx(5)
    assert binomial(50, math.nan) == 0


def test_settings_that_cannot_be_told_from_the_best():
    # Between seeds: sums of squares 0.5, 0.5 and 0.5 over three settings of two; sd^2 = 0.5.
    study = study_of(
        {
            ("A", "0"): (90, 90),
            ("A", "1"): (91, 90),
            ("B", "0"): (88, 90),
            ("B", "1"): (89, 90),
            ("C", "0"): (87, 90),
            ("C", "1"): (88, 90),
        },
        ["k", "seed"],
    )
    # t(3) = 3.18245; 3.18245 * sqrt(0.5 * (1/2 + 1/2)) = 2.25.
    assert [(row.setting[0], row.best, row.tied) for row in summarise(study)] == [
        ("A", True, None),
        ("B", False, True),
        ("C", False, False),
    ]
    for run in study.runs:  # of few images less can be said
        run.result["n_val"] = 1000
    assert [row.tied for row in summarise(study)] == [None, True, True]
    for row in summarise(study_of({("A",): (90, 90), ("B",): (60, 60)}, ["k"])):
        assert row.tied is None  # nothing is known of the spread between seeds


def test_holm_by_hand():
    corrected = holm([0.01, 0.04, math.nan, 0.03])
    assert corrected[0] == pytest.approx(0.03)  # 3 * 0.01
    assert corrected[3] == pytest.approx(0.06)  # 2 * 0.03
    assert corrected[1] == pytest.approx(0.06)  # 1 * 0.04, and never below the one before
    assert math.isnan(corrected[2])


def test_importance_is_the_share_of_the_variance():
    study = study_of(
        {(a, b): (80 + 4 * int(a) + int(b), 0) for a in "012" for b in "012"}, ["k", "seed"]
    )
    shares = importance(study)
    assert shares["k"] == pytest.approx(16 / 17)
    assert shares["seed"] == pytest.approx(1 / 17)


def test_effects_are_differences_of_runs_alike_in_all_else():
    study = study_of(
        {
            ("A", "0"): (80, 70),
            ("A", "1"): (81, 72),
            ("A", "2"): (85, 71),
            ("B", "0"): (81, 71),
            ("B", "1"): (83, 73),
            ("B", "2"): (85, 72),
            ("B", "3"): (99, 99),  # has no partner and must not count
        },
        ["shortcut", "seed"],
    )
    (effect,) = list(effects(study))
    assert (effect.key, effect.here, effect.there) == ("shortcut", "A", "B")
    assert effect.val.n == 3
    assert effect.val.mean == pytest.approx(1.0)  # of 1, 2, 0
    assert effect.val.sd == pytest.approx(1.0)
    assert effect.val.high - 1 == pytest.approx(T2 / math.sqrt(3), rel=1e-5)
    assert effect.p_val == pytest.approx(0.2254, abs=1e-4)  # t = sqrt(3) with 2 degrees
    assert effect.test.mean == pytest.approx(1.0)  # of 1, 1, 1
    assert effect.test.high == pytest.approx(1.0)


def test_effects_pair_over_the_other_factor_and_average_doubles():
    study = study_of(
        {
            ("20", "A"): (80, 80),
            ("20", "B"): (82, 82),
            ("32", "A"): (90, 90),
            ("32", "B"): (94, 94),
        },
        ["depth", "shortcut"],
    )
    by_key = {effect.key: effect for effect in effects(study)}
    assert by_key["depth"].val.mean == pytest.approx(11)  # of 10, 12
    assert by_key["shortcut"].val.mean == pytest.approx(3)  # of 2, 4
    study.runs.append(
        Run(
            "again",
            Path(),
            "finished",
            "",
            {"depth": "20", "shortcut": "A"},
            {"val/acc": 0.84, "test/acc": 0.84},
        )
    )
    again = {effect.key: effect for effect in effects(study)}["shortcut"]
    assert again.val.n == 2
    assert again.val.mean == pytest.approx(2)  # of 82 - (80 + 84) / 2, and 4


def test_a_key_of_many_values_is_compared_with_its_first():
    study = study_of({(v,): (80 + i, 80) for i, v in enumerate("abcde")}, ["k"])
    assert [(e.here, e.there) for e in effects(study)] == [("a", v) for v in "bcde"]
    study = study_of({(v,): (80 + i, 80) for i, v in enumerate("abc")}, ["k"])
    assert [(e.here, e.there) for e in effects(study)] == [("a", "b"), ("a", "c"), ("b", "c")]


def test_best_is_chosen_by_validation_never_by_test():
    study = study_of({("A",): (90, 99), ("B",): (91, 50)}, ["shortcut"])
    assert [row.setting for row in summarise(study) if row.best] == [("B",)]
    page = report_of_study(study)
    assert "Best by validation B" in page
    for run in study.runs:
        del run.result["val/acc"]
    assert not any(row.best for row in summarise(study))
    assert "no setting is chosen as best" in report_of_study(study)


def report_of_study(study: Study) -> str:
    return text_of(compose([study], Path("out")).html([]))


def test_frontier_is_what_nothing_cheaper_reaches():
    study = study_of(
        {("a",): (80, 0), ("b",): (85, 0), ("c",): (84, 0), ("d",): (90, 0), ("e",): (79, 0)}, ["k"]
    )
    for run, cost in zip(study.runs, (1, 2, 3, 4, 1), strict=True):
        run.result["params"] = cost
    assert [row.setting for row in frontier(summarise(study), "params")] == [("a",), ("b",), ("d",)]
    assert frontier(summarise(study), "macs") == []


def test_curves_are_means_by_epoch():
    one = {1: {"val/acc": 0.5}, 2: {"val/acc": 0.7}}
    other = {1: {"val/acc": 0.7}, 2: {}}
    found = curve([one, other], "val/acc")
    assert list(found.index) == [1, 2]
    assert found.loc[1, "mean"] == pytest.approx(0.6)
    assert found.loc[1, "std"] == pytest.approx(0.1 * math.sqrt(2))
    assert found.loc[2, "count"] == 1


# ------------------------------------------------------------------ reading


def test_epochs_take_the_last_of_a_resumed_epoch_and_tell_damage(tmp_path):
    text = f"{COLUMNS}\n1,10,0.1,2.0,0.1,2.0,0.2,900,9\n1,10,0.1,1.9,0.1,2.0,0.3,900,9\n2,20,0.\x00"
    (tmp_path / "metrics.csv").write_text(text)
    rows, lost = epochs(tmp_path)
    assert rows[1]["val/acc"] == 0.3
    assert list(rows) == [1]
    assert lost == 1
    assert epochs(tmp_path / "nowhere") == ({}, 0)


def test_varied_keys_of_plain_runs(tmp_path):
    """From the configs: what was typed, not all that follows from it."""
    paths = []
    for model, optimizer, seed in itertools.product(DEPTHS, ("sgd", "adam"), (0, 10, 2)):
        overrides = [f"optimizer={optimizer}", f"seed={seed}"]
        overrides += ["model=resnet32"] if model == "resnet32" else []  # resnet20 is the default
        folder = tmp_path / f"{model}-{optimizer}-{seed}"
        paths.append(make_run(folder, overrides, 0.8, 0.8))
    (study,) = read(paths)
    assert study.keys == ["optimizer", "seed", "model"]
    assert study.values == {
        "optimizer": ["adam", "sgd"],
        "seed": ["0", "2", "10"],
        "model": ["resnet20", "resnet32"],
    }
    assert len(study.commands) == 12


def test_a_changed_default_is_found_though_nobody_typed_it(tmp_path):
    paths = [make_run(tmp_path / name, [], 0.8, 0.8) for name in ("one", "two")]
    config = (paths[1] / "config.yaml").read_text()
    (paths[1] / "config.yaml").write_text(config.replace("lr: 0.1", "lr: 0.2"))
    (study,) = read(paths)
    assert study.values == {"optimizer.lr": ["0.1", "0.2"]}


def test_single_run_and_repeats(tmp_path):
    run = make_run(tmp_path / "one", [], 0.8, 0.79)
    folder = report([run])
    assert folder == run / "report"
    page = text_of((folder / "report.html").read_text())
    assert "Validation accuracy 80.00 %" in page
    assert "n=1" in page
    assert "±" not in page.split("Settings")[1].split("Learning")[0]


REFERENCES = [
    (8.75, 91.25),
    ({"test_error": 8.75, "source": "He et al. 2015, Table 6"}, 91.25),
    ({"test_acc": 87.6}, 87.6),
]


@pytest.mark.parametrize(("given", "accuracy"), REFERENCES)
def test_reference_in_any_form(tmp_path, given, accuracy):
    run = make_run(tmp_path / "run", [], 0.9, 0.9, reference=given)
    ((only,),) = (study.runs for study in read([run]))
    assert reference(only).test_acc == pytest.approx(accuracy)


def test_published_figures_are_compared(tmp_path):
    published = {"test_error": 8.75, "source": "He et al. 2015, Table 6"}
    paths = [
        make_run(tmp_path / f"{s}", [f"seed={s}"], 0.9, acc, reference=published)
        for s, acc in enumerate((0.91, 0.92, 0.93))
    ]
    page = text_of((report(paths, tmp_path / "out") / "report.html").read_text())
    section = page.split("Beside published figures")[1].split("Runs")[0]
    assert "91.25" in section
    assert "92.00" in section
    assert "+0.75" in section  # 92.00 - 91.25
    assert "He et al. 2015, Table 6" in section


def test_a_reference_nobody_understands_is_said_and_stops_nothing(tmp_path):
    run = make_run(tmp_path / "run", [], 0.9, 0.9, reference={"top1": "good"})
    page = text_of((report([run]) / "report.html").read_text())
    assert "is not understood" in page


# ------------------------------------------------------------------ the report of a sweep


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = make_sweep(tmp_path_factory.mktemp("sweeps") / "shortcuts")
    report([sweep])
    return sweep


def test_report_of_a_whole_sweep(whole):
    page = (whole / "report" / "report.html").read_text()
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    assert {"Settings", "Effect of each factor", "Learning curves", "Runs"} <= set(titles)
    text = text_of(page)
    assert "python train.py -m sweep.name=shortcuts model=resnet20,resnet32" in text
    assert "24 jobs: 24 finished." in text
    assert "All runs: device Example CPU, 2 cores, devices 1, precision bf16-mixed" in text
    assert {path.name for path in (whole / "report").iterdir()} == {"report.html", "results.csv"}


@pytest.mark.slow
def test_pictures_as_files_where_asked_for(tmp_path):
    folder = report([make_sweep(tmp_path / "sweep", seeds=1, shortcuts="ABC")], png=True)
    names = {path.stem for path in folder.glob("*.png")}
    assert {"settings", "curves-1", "curves-2", "effects", "parallel"} <= names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))


def test_tables_hold_the_figures_of_the_runs(whole):
    (study,) = read([whole])
    accuracies = [
        100 * run.result["test/acc"]
        for run in study.runs
        if (run.settings["model"], run.settings["model.shortcut"]) == ("resnet32", "C")
    ]
    assert len(accuracies) == 3
    mean = sum(accuracies) / 3
    sd = math.sqrt(sum((a - mean) ** 2 for a in accuracies) / 2)
    half = T2 * sd / math.sqrt(3)
    settings = text_of((whole / "report" / "report.html").read_text()).split("Settings")[1]
    row = settings.split("resnet32 C 3 ")[1].split("resnet32 none")[0]
    assert f"{mean:.2f} ± {sd:.2f} [{mean - half:.2f}, {mean + half:.2f}], n=3" in row


def test_every_run_has_a_row_that_links_to_its_files(whole):
    page = (whole / "report" / "report.html").read_text()
    rows = page.split("<h3>Runs</h3>")[1].split("</table>")[0]
    assert rows.count("<tr>") == 24 + 1
    links = re.findall(r'href="([^"]*)"', rows)
    assert len(links) == 24
    for link in links:
        assert (whole / "report" / unquote(link)).is_dir()


def test_runs_of_one_sweep_that_differ_in_data_are_not_pooled(tmp_path):
    paths = [make_run(tmp_path / f"c{n}", [f"seed={n}"], 0.9, 0.9) for n in range(2)]
    paths += [
        make_run(tmp_path / f"d{n}", [f"seed={n}"], 0.3, 0.3, data="digits", n_test=360)
        for n in range(2)
    ]
    studies = read(paths)
    assert [len(study.runs) for study in studies] == [2, 2]
    page = text_of((report(paths, tmp_path / "out") / "report.html").read_text())
    assert "on 2 different data sets or splits, whose figures cannot be compared" in page
    assert page.count("Validation accuracy") == 2  # a card each
    assert "60.00" not in page


def test_keys_that_cannot_change_the_outcome_are_no_factors(tmp_path):
    paths = [
        make_run(tmp_path / "a", ["logger=csv", "callbacks=[default,pictures]"], 0.8, 0.8),
        make_run(tmp_path / "b", ["compile=false", "data.workers=2"], 0.8, 0.8),
    ]
    (study,) = read(paths)
    assert study.keys == []
    paths.append(make_run(tmp_path / "c", ["callbacks=[default,pictures,ema]"], 0.8, 0.8))
    (study,) = read(paths)
    assert study.values == {"callbacks": ["ema", "none"]}


def test_sweeps_without_configs_are_told_apart_by_what_was_typed(tmp_path):
    sweeps = []
    for name, model in (("one", "resnet20"), ("two", "resnet32")):
        sweep = make_sweep(tmp_path / name, seeds=1)
        content = json.loads((sweep / "sweep.json").read_text())
        content["jobs"] = [j for j in content["jobs"] if f"model={model}" in j["overrides"]]
        (sweep / "sweep.json").write_text(json.dumps(content))
        for run in [path for path in sweep.iterdir() if path.is_dir()]:
            (run / "config.yaml").unlink()
            shutil.rmtree(run / ".hydra")
            if model not in run.name:
                shutil.rmtree(run)
        sweeps.append(sweep)
    (study,) = read(sweeps)
    assert set(study.keys) == {"model", "model.shortcut"}
    assert study.values["model"] == ["resnet20", "resnet32"]


def test_a_folder_above_runs_is_all_of_them(tmp_path):
    make_sweep(tmp_path / "outputs" / "sweeps" / "s", seeds=1)
    make_run(tmp_path / "outputs" / "runs" / "r", ["seed=5"], 0.8, 0.8)
    (study,) = read([tmp_path / "outputs"])
    assert len(study.runs) == 9


def test_long_names_are_numbered(tmp_path):
    keys = ["optimizer.weight_decay", "data.batch_size", "model.stochastic_depth"]
    study = study_of({("0.0001", "128", str(n)): (80 + n, 80) for n in range(3)}, keys)
    page = report_of_study(study)
    assert "S3: validation 82.00 %" in page
    assert "S1 0.0001 128 0" in page


def test_results_have_a_row_a_job(whole):
    rows = results(whole / "report")
    assert len(rows) == 24
    assert [rows[0][key] for key in ("model", "model.shortcut", "seed")] == ["resnet20", "A", "0"]
    for row in rows:
        result = json.loads((whole / row["run"] / "result.json").read_text())
        assert float(row["val_acc_percent"]) == pytest.approx(100 * result["val/acc"], abs=1e-4)
        assert row["version_torch"] == "2.15.0"


def test_html_needs_no_other_file_and_no_network(whole):
    page = (whole / "report" / "report.html").read_text()
    assert "://" not in page
    assert page.count("<script>") == 1  # sorts tables
    assert not re.search(r"<(link|iframe|object|embed|base)\b|@import|\ssrc=", page)
    targets = re.findall(r'href="([^"]*)"', page)
    assert all(target.startswith(("#", "../")) for target in targets)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    defined = set(re.findall(r'\bid="([^"]*)"', page))
    assert set(re.findall(r'(?:href="|url\()#([\w-]+)', page)) <= defined


def test_every_unfinished_job_is_listed_with_its_reason(tmp_path):
    def overrides(depth: str, seed: int) -> list[str]:
        return [f"model={depth}", f"seed={seed}"]

    sweep = tmp_path / "sweep"
    jobs = [
        job(overrides("resnet20", 0)),
        job(overrides("resnet20", 1), "failed", "exit status 0 before it had <finished>"),
        job(overrides("resnet20", 2), "interrupted"),
        job(overrides("resnet20", 3), "running"),
        job(overrides("resnet20", 4), "waiting"),
        job(overrides("resnet32", 0)),  # its result.json will be cut off
        job(overrides("resnet32", 1)),  # its folder is gone
        job(overrides("resnet32", 2)),
    ]
    write_sweep(sweep, ["model", "seed"], jobs)
    states = ["finished", "running", "interrupted", "running", "", "finished", "", "finished"]
    for entry, status in zip(jobs, states, strict=True):
        if status:
            make_run(sweep / entry["folder"], entry["overrides"][1:], 0.8, 0.8, status)
    cut = sweep / jobs[5]["folder"] / "result.json"
    cut.write_text(cut.read_text()[:100])
    make_run(sweep / "left-over", overrides("resnet32", 7), 0.8, 0.8)  # not in sweep.json

    report([sweep])
    page = text_of((sweep / "report" / "report.html").read_text())
    listed = page.split("Runs")[-1]
    for entry, reason in (
        (jobs[1], "failed exit status 0 before it had <finished> (5 epochs done)"),
        (jobs[2], "interrupted no reason is recorded (5 epochs done)"),
        (jobs[3], "running 5 epochs done, last heard of"),
        (jobs[4], "waiting not started yet"),
        (jobs[5], "unreadable result.json cannot be read (Unterminated string"),
        (jobs[6], "missing sweep.json says finished, but there is no result.json"),
    ):
        model, seed = (override.partition("=")[2] for override in entry["overrides"][1:])
        assert f"{model} {seed} {reason}" in listed
    rows = results(sweep / "report")
    assert len(rows) == 9
    assert [row["state"] for row in rows].count("finished") == 3
    assert "3 of 9" in page


def test_a_sweep_that_only_began_has_curves_but_no_figures(tmp_path, capsys):
    entry = job(["model=resnet20", "seed=0"], "running")
    other = job(["model=resnet32", "seed=0"], "waiting")
    sweep = write_sweep(tmp_path / "young", ["model", "seed"], [entry, other])
    make_run(sweep / entry["folder"], entry["overrides"][1:], 0.8, 0.8, "running")
    assert main(["report", str(sweep)]) == 0
    page = text_of((sweep / "report" / "report.html").read_text())
    assert "No job has finished yet" in page
    assert "Learning curves" in page
    assert "No job has finished yet" in capsys.readouterr().out


def test_cut_off_sweep_json_is_one_sentence_and_the_runs_remain(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", seeds=1)
    text = (sweep / "sweep.json").read_text()
    (sweep / "sweep.json").write_text(text[: len(text) // 2])
    (study,) = read([sweep])
    assert len(study.finished) == 8
    assert set(study.keys) == {"model", "model.shortcut"}
    (note,) = study.notes
    assert "sweep.json cannot be read" in note
    report([sweep])
    assert "sweep.json cannot be read" in (sweep / "report" / "report.html").read_text()


def test_differing_machines_are_told_apart(tmp_path):
    paths = [
        make_run(tmp_path / "a", ["seed=0"], 0.8, 0.8),
        make_run(tmp_path / "b", ["seed=1"], 0.8, 0.8, device_name="Other GPU"),
    ]
    page = text_of((report(paths, tmp_path / "out") / "report.html").read_text())
    machines = page.split("Hardware and versions")[1]
    assert "device: Example CPU, 2 cores (1 run), Other GPU (1 run)" in machines
    assert "training times cannot be compared" in page


def test_too_many_settings_to_draw_are_said(tmp_path):
    keys = ["optimizer.lr", "data.batch_size"]
    study = study_of(
        {(f"{a}", f"{b}"): (80 + a / 10, 80) for a in range(9) for b in range(9)}, keys
    )
    for run in study.runs:
        run.result |= {"params": 10, "macs": 10, "train_seconds": 10 + float(run.settings[keys[0]])}
    page = report_of_study(study)
    assert "Of 81 settings the 7 best by validation are drawn in colour." in page
    assert "The 60 best of 81 settings by validation; results.csv has every run." in page


# ------------------------------------------------------------------ the command line


def test_screen_shows_the_table_and_where_the_report_is(whole, capsys):
    assert main(["report", str(whole)]) == 0
    shown = capsys.readouterr().out
    assert "val acc %" in shown
    assert "best" in shown
    assert "report.html" in shown


def test_a_report_is_replaced_whole(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", seeds=1, shortcuts="A")
    report([sweep])
    first = (sweep / "report" / "report.html").stat().st_ino
    report([sweep])
    assert (sweep / "report" / "report.html").stat().st_ino != first
    assert not list(sweep.glob(".report*"))


@pytest.mark.parametrize("earlier", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_no_report_wrote_is_left_alone(tmp_path, earlier):
    sweep = make_sweep(tmp_path / "sweep", seeds=1, shortcuts="A")
    if earlier:
        report([sweep])
    (sweep / "report").mkdir(exist_ok=True)
    (sweep / "report" / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in (sweep / "report").iterdir()}
    with pytest.raises(ValueError, match=r"notes\.txt.*nothing was changed.*--out"):
        report([sweep])
    assert {path: path.read_bytes() for path in (sweep / "report").iterdir()} == before
    assert report([sweep], tmp_path / "elsewhere") == tmp_path / "elsewhere"


@pytest.mark.slow
def test_a_failing_report_leaves_the_old_one(tmp_path, monkeypatch):
    sweep = make_sweep(tmp_path / "sweep", seeds=1, shortcuts="A")
    report([sweep])
    before = (sweep / "report" / "report.html").read_text()

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("resnet_lab.report.write._write_results", full)
    with pytest.raises(OSError, match="disk full"):
        report([sweep])
    assert (sweep / "report" / "report.html").read_text() == before
    assert not list(sweep.glob(".report*"))


def no_run(folder: Path) -> None:
    (folder / "notes.txt").write_text("nothing here")


def no_jobs(folder: Path) -> None:
    write_sweep(folder, ["seed"], [])


def nothing_readable(folder: Path) -> None:
    entry = job(["seed=0"])
    write_sweep(folder, ["seed"], [entry])
    (folder / entry["folder"]).mkdir()
    (folder / entry["folder"] / "result.json").write_text('{"status": "fini')


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (no_run, "is no run and no sweep"),
        (no_jobs, "is an empty sweep"),
        (nothing_readable, "no run to report on yet .seed=0: result.json cannot be read"),
    ],
)
def test_what_is_no_study_gets_a_sentence_and_leaves_no_trace(tmp_path, capsys, prepare, sentence):
    folder = tmp_path / "folder"
    folder.mkdir()
    prepare(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as exit_:
        main(["report", str(folder)])
    message = str(exit_.value.code)  # a text: printed on stderr, status 1
    assert re.search(sentence, message)
    assert message.count("\n") == 0
    assert sorted(folder.rglob("*")) == before


def test_report_works_where_torch_is_missing(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", seeds=2, shortcuts="AB")
    done = without_torch(tmp_path, "report", str(sweep), script=CLI)
    assert (done.returncode, done.stderr) == (0, "")
    assert (sweep / "report" / "report.html").is_file()


def test_tensorboard_opens_on_the_one_folder(whole, monkeypatch, tmp_path):
    started: list[list[str]] = []
    boards: list[str] = []

    def serve(arguments: list[str], update: Callable[[], None]) -> int:
        started.append(arguments)
        update()  # as it does again and again
        folder = Path(arguments[arguments.index("--logdir") + 1])
        boards.extend(sorted(link.name for link in folder.iterdir()))
        return 0

    runs = sorted(path for path in whole.iterdir() if path.name.startswith("model"))
    for run in runs[:2]:
        (run / "tensorboard").mkdir(exist_ok=True)
    monkeypatch.setattr(tensorboard, "_serve", serve)
    assert main(["tensorboard", str(whole), "--port", "7007"]) == 0
    assert started[0][-4:] == ["--host", "localhost", "--port", "7007"]
    assert boards == [run.name for run in runs[:2]]
    with pytest.raises(ValueError, match="is no run and no sweep"):
        tensorboard.open_board(tmp_path)


def test_the_board_has_the_mean_over_seeds_as_soon_as_all_have_an_epoch(tmp_path):
    sweep, folder = make_sweep(tmp_path / "sweep", shortcuts="AB"), tmp_path / "board"
    running = sweep / "model=resnet20,shortcut=A,seed=2"
    lines = (running / "metrics.csv").read_text().splitlines(keepends=True)
    (running / "metrics.csv").write_text("".join(lines[:-2]))
    means = MeanRuns(sweep, folder)
    means.write()
    place = folder / "mean of 3, model=resnet20,shortcut=A"
    assert board(place / "val").Scalars("accuracy")[-1].step == 3
    (running / "metrics.csv").write_text("".join(lines))
    means.write()
    means.close()

    names = {path.name for path in folder.iterdir()}
    assert names == {f"mean of 3, model={m},shortcut={s}" for m in DEPTHS for s in "AB"}
    events = board(place / "val")
    runs = [path for path in sweep.iterdir() if path.name.startswith("model=resnet20,shortcut=A")]
    for epoch, event in enumerate(events.Scalars("accuracy"), 1):
        values = [epochs(run)[0][epoch]["val/acc"] for run in runs]
        assert event.step == epoch
        assert event.value == pytest.approx(fmean(values))
        below, above = (
            events.Scalars(f"accuracy_band/{side}")[epoch - 1].value
            for side in ("minus_sd", "plus_sd")
        )
        assert above - below == pytest.approx(2 * stdev(values), abs=1e-6)
    assert len(events.Scalars("accuracy")) == 5
    (layout,) = events.Tensors("custom_scalars__config__")
    parsed = Layout.FromString(layout.tensor_proto.string_val[0])
    (series,) = parsed.category[0].chart[0].margin.series
    assert {series.value, series.lower, series.upper} <= set(events.Tags()["scalars"])
    with pytest.raises(ValueError, match="is one run"):
        tensorboard.open_board(running, mean=True)


@pytest.mark.slow
@pytest.mark.parametrize("listed", [True, False])
def test_a_thousand_runs(tmp_path, listed):
    sweep = make_sweep(tmp_path / "sweep", seeds=125, n_epochs=100)
    paths = [sweep]
    if not listed:
        paths = [path for path in sweep.iterdir() if path.is_dir()]
        assert len(paths) == 1000
    report(paths, tmp_path / "out")
    assert len((tmp_path / "out" / "results.csv").read_text().splitlines()) == 1001
    assert (tmp_path / "out" / "report.html").stat().st_size < 3_000_000

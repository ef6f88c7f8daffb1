"""`resnet-lab ui`: what the page is told, who may ask, and what is stopped and resumed."""

import http.client
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from resnet_lab.config.compose import APP
from resnet_lab.config.errors import UserError
from resnet_lab.ui import command, files, holders
from resnet_lab.ui.server import Server
from resnet_lab.ui.views import Views

PNG = b"\x89PNG\r\n\x1a\n and so on"
EVIL = "<script>alert(1)</script>"
COMMAND = "resnet-lab train -m sweep.name=grid model=resnet20 seed=0,1"


def write_run(folder: Path, status: str = "finished", **more: Any) -> Path:
    """A run folder with what the page reads."""
    folder.mkdir(parents=True)
    result = {"status": status, "model": "resnet20", "data": "digits", "val/acc": 0.9, **more}
    (folder / "result.json").write_text(json.dumps(result))
    sections = ("data", "classifier", "optimizer", "scheduler")
    config = "model: {depth: 20}\ntrainer:\n  max_epochs: 3\n"
    (folder / "config.yaml").write_text(config + "".join(f"{name}: {{}}\n" for name in sections))
    (folder / "metrics.csv").write_text(
        "epoch,train/loss,train/acc,val/loss,val/acc,train_seconds\n"
        "1,2.0,0.2,2.1,0.1,4.0\n2,1.0,0.5,1.1,0.4,4.0\n"
    )
    (folder / "curves.png").write_bytes(PNG)
    return folder


def write_sweep(folder: Path, command: str = COMMAND, states: str = "finished waiting") -> Path:
    jobs = []
    for seed, state in enumerate(states.split()):
        name = f"seed={seed}"
        if state != "waiting":
            write_run(folder / name, state, seed=seed)
        jobs.append({"folder": name, "overrides": [name], "state": state, "error": None})
    content = {"name": folder.name, "command": command, "keys": ["seed"], "jobs": jobs}
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


class Browser:
    """Asks a server as the page does, or worse."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.guard = server.guard

    def ask(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> Any:
        """Status, headers and content of the answer; None leaves a header out."""
        connection = http.client.HTTPConnection("127.0.0.1", self.guard.port, timeout=30)
        sent: dict[str, Any] = {
            "Host": f"127.0.0.1:{self.guard.port}",
            "Cookie": f"{self.guard.cookie}={self.guard.token}",
        }
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            sent["Content-Length"] = str(len(content))
        for name, value in sent.items():
            if value:
                connection.putheader(name, value)
        connection.endheaders(content)
        answer = connection.getresponse()
        received = answer.read()
        connection.close()
        if answer.getheader("Content-Type") == "application/json":
            received = json.loads(received)
        return answer.status, dict(answer.getheaders()), received

    def get(self, path: str, **question: str) -> Any:
        """The content of a good answer."""
        status, _, content = self.ask(f"{path}?{urlencode(question)}")
        assert status == 200, content
        return content

    def refused(self, path: str, **question: str) -> str:
        status, _, content = self.ask(f"{path}?{urlencode(question)}")
        assert status == 422, content
        return str(content["error"] if isinstance(content, dict) else content.decode())

    def do(self, action: str, key: str, confirm: str, **headers: str) -> Any:
        own = {"Content_Type": "application/json", "X_Resnet_Lab": "1"} | headers
        body = {"id": key, "confirm": confirm}
        return self.ask(f"/api/do/{action}", "POST", body, **own)


Serve = Callable[[Path], Browser]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(folder)`: a server on a free port, and somebody who asks it."""
    servers = []

    def start(folder: Path) -> Browser:
        server = Server(Views([folder]), 0)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        servers.append((server, thread))
        return Browser(server)

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()
        for process in server.actions.started.values():
            process.wait(20)


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder outputs/ of the current one: a run and a sweep."""
    monkeypatch.chdir(tmp_path)
    write_run(Path("outputs/runs/first"))
    write_sweep(Path("outputs/sweeps/grid"))
    return Path("outputs")


@pytest.fixture
def page(serve: Serve, outputs: Path) -> Browser:
    return serve(outputs)


def ids(page: Browser) -> dict[str, str]:
    return {row["name"]: row["id"] for row in page.get("/api/runs")["rows"]}


def again(page: Browser) -> Any:
    """The table as the folders are now."""
    page.server.views.again()
    return page.get("/api/runs")


# What is shown


def test_the_table_lists_runs_and_sweeps(page: Browser) -> None:
    content = page.get("/api/runs")
    rows = {row["name"]: row for row in content["rows"]}
    assert set(rows) == {"first", "seed=0", "seed=1"}
    assert rows["first"]["state"] == "finished"
    assert rows["first"]["max_epochs"] == 3
    assert rows["seed=1"]["state"] == "waiting"
    (sweep,) = content["sweeps"]
    assert sweep["name"] == "grid"
    assert sweep["counts"] == {"finished": 1, "waiting": 1}
    assert sweep["left"] == 1
    assert not sweep["running"]
    assert rows["seed=0"]["sweep_id"] == sweep["id"]


def test_nothing_is_sent_until_something_changes(page: Browser, outputs: Path) -> None:
    _, headers, _ = page.ask("/api/runs")
    status, _, content = page.ask("/api/runs", If_None_Match=headers["ETag"])
    assert (status, content) == (304, b"")
    (outputs / "runs/first/labels.json").write_text('{"tags": ["good"], "note": ""}')
    page.server.views.again()
    status, _, content = page.ask("/api/runs", If_None_Match=headers["ETag"])
    assert status == 200
    assert [row["tags"] for row in content["rows"] if row["name"] == "first"] == [["good"]]


def test_a_condition_chooses_and_a_typo_is_a_sentence(page: Browser) -> None:
    assert page.get("/api/runs", where="seed == 0")["chosen"] == [ids(page)["seed=0"]]
    content = page.get("/api/runs", where="val/ac > 0.5")
    assert content["chosen"] is None
    assert "val/acc" in content["fault"]
    assert len(content["rows"]) == 3


def test_config_keys_are_columns(page: Browser) -> None:
    assert "model.depth" in page.get("/api/keys")
    rows = page.get("/api/runs", columns="model.depth")["rows"]
    assert {row["name"]: row["config"]["model.depth"] for row in rows}["first"] == 20


def test_curves_of_runs_that_differ_by_their_seed(page: Browser) -> None:
    chosen = ids(page)
    curves = page.get("/api/curves", ids=",".join(chosen[n] for n in ("seed=0", "seed=1", "first")))
    first, second, single = curves
    assert first["epochs"] == [1, 2]
    assert first["val/acc"] == [0.1, 0.4]
    assert second["epochs"] == []
    assert first["repeated"]
    assert first["setting"] == second["setting"]
    assert not single["repeated"]
    assert first["name"] == "grid: seed=0"  # among runs of others


def test_how_far_a_run_is(page: Browser, outputs: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    folder = write_run(outputs / "runs/now", "running")
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        (row,) = (row for row in again(page)["rows"] if row["name"] == "now")
        assert row["progress"]["epoch"] == 2
        assert row["progress"]["pace"] == 4.0  # seconds of training, as it has measured them
        os.utime(folder / "metrics.csv", (1000, 1000))
        again(page)
        with (folder / "metrics.csv").open("a") as metrics:
            metrics.write("3,1.0,0.5,1.1,0.4,4.0\n")
        os.utime(folder / "metrics.csv", (1010, 1010))
        (row,) = (row for row in again(page)["rows"] if row["name"] == "now")
        assert row["progress"]["epoch"] == 3
        assert row["progress"]["at"] == 1010
    finally:
        os.close(descriptor)
    (row,) = (row for row in again(page)["rows"] if row["name"] == "now")
    assert row["state"] == "died"
    assert "progress" not in row


def test_differences_of_chosen_runs(page: Browser, outputs: Path) -> None:
    other = write_run(outputs / "runs/second", **{"val/acc": 0.8})
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("depth: 20", "depth: 32"))
    again(page)
    chosen = ids(page)
    found = page.get("/api/diff", ids=f"{chosen['first']},{chosen['second']}")
    lines = {line[0]: line[1:] for section in found["sections"] for line in section["lines"]}
    assert lines["model.depth"] == ["20", "32"]
    assert lines["val/acc"][0] == "0.9000"
    assert "two" in page.refused("/api/diff", ids=chosen["first"])


def test_a_damaged_folder_is_listed_and_breaks_nothing(page: Browser, outputs: Path) -> None:
    broken = write_run(outputs / "runs/broken")
    (broken / "result.json").write_bytes(b"\xff{")
    (broken / "config.yaml").write_text("a: *b\n")
    (broken / "metrics.csv").write_bytes(b"epoch\n\0\n\xff,\n")
    (outputs / "sweeps/grid/sweep.json").write_text("[]")
    content = again(page)
    (row,) = (row for row in content["rows"] if row["name"] == "broken")
    assert row["state"] == "unreadable"
    assert content["sweeps"][0]["fault"]
    for path in ("/api/curves", "/api/pictures"):
        page.get(path, ids=row["id"])
    page.get("/api/run", id=row["id"])
    page.get("/api/keys")
    page.refused("/api/plan", action="resume", id=f"sweep:{content['sweeps'][0]['id']}")


def test_names_stay_text(page: Browser, outputs: Path) -> None:
    folder = write_run(outputs / "runs" / EVIL.replace("/", "|"))
    (folder / "labels.json").write_text(json.dumps({"tags": [EVIL], "note": EVIL}))
    again(page)
    status, headers, content = page.ask("/api/runs")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert EVIL in [row["note"] for row in content["rows"]]
    package = Path(files.__file__).parent
    for script in package.glob("*.js"):  # what is inserted is inserted as text
        text = script.read_text()
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert way not in text, script


def test_the_page_and_its_parts(page: Browser) -> None:
    status, headers, content = page.ask("/")
    assert status == 200
    assert b"app.js" in content
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    package = Path(files.__file__).parent
    for path in package.glob("*.[jc]s*"):
        assert page.ask(f"/{path.name}")[0] == 200, path
    assert page.ask("/server.py")[0] == 404
    assert page.ask("/../cli.py")[0] == 404
    assert page.ask("http://[")[0] == 404


@pytest.mark.slow  # imports Matplotlib
def test_the_report_of_a_sweep_runs_no_script_but_its_own(page: Browser, outputs: Path) -> None:
    key = page.get("/api/runs")["sweeps"][0]["id"]
    (outputs / "sweeps/grid/seed=0/result.json").write_text(
        json.dumps({"status": "finished", "model": EVIL, "data": "digits", "val/acc": 0.9})
    )
    status, headers, content = page.ask(f"/report?id={key}")
    assert status == 200
    assert EVIL.encode() not in content
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("sandbox allow-scripts;")
    assert "script-src 'sha256-" in policy
    assert b'<a href="' not in content
    (outputs / "sweeps/grid/sweep.json").unlink()
    page.server.views.again()
    assert page.ask(f"/report?id={key}")[0] == 422


# Who may ask


def test_the_token_is_changed_for_a_cookie(page: Browser) -> None:
    guard = page.guard
    status, headers, _ = page.ask(f"/?token={guard.token}", Cookie="")
    assert (status, headers["Location"]) == (303, "/")
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert page.ask("/api/runs", Cookie=cookie.partition(";")[0])[0] == 200
    # From a link in another site's page a redirect would come without the cookie.
    status, _, content = page.ask(f"/?token={guard.token}", Cookie="", Sec_Fetch_Site="cross-site")
    assert status == 200
    assert b"refresh" in content


def test_the_address_on_a_command_line_works_once(page: Browser) -> None:
    path = "/" + page.guard.address_for_once.rpartition("/")[2]
    assert page.ask(path, Cookie="")[0] == 303
    assert page.ask(path, Cookie="")[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Cookie": ""},
        {"Cookie": "resnet_lab_{port}=wrong"},
        {"Cookie": "resnet_lab_{port}=é"},
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},  # another port of this machine
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/api/runs", "/", "/file?id=x&name=curves.png"])
def test_others_are_refused(page: Browser, path: str, headers: dict[str, str]) -> None:
    filled = {k: v.replace("{port}", str(page.guard.port)) for k, v in headers.items()}
    filled = {k: v.encode().decode("latin-1") for k, v in filled.items()}
    status, _, content = page.ask(path, **filled)
    assert status == 403
    assert b"val/acc" not in str(content).encode()


def test_a_wrong_token_is_refused(page: Browser) -> None:
    assert page.ask("/?token=wrong", Cookie="")[0] == 403
    assert page.ask(f"/api/runs?token={page.guard.token}", Cookie="")[0] == 403
    status, *_ = page.ask(f"/?token={page.guard.token}", Cookie="", Host="evil.example")
    assert status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Resnet_Lab": ""},
        {"Content_Type": "text/plain"},
        {"Origin": "http://evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "none"},
        {"Cookie": ""},
    ],
    ids=str,
)
def test_nothing_is_done_for_others(page: Browser, headers: dict[str, str]) -> None:
    assert page.do("stop", "x", "y", **headers)[0] == 403


def test_only_the_own_machine_is_listened_to(page: Browser) -> None:
    assert page.server.server_address[0] == "127.0.0.1"


# Files


def test_pictures_and_texts_of_a_run(page: Browser, outputs: Path) -> None:
    key = ids(page)["first"]
    status, headers, content = page.ask(f"/file?id={key}&name=curves.png")
    assert (status, headers["Content-Type"], content) == (200, "image/png", PNG)
    (outputs / "runs/first/run.log").write_bytes(b"<script>" + b"x" * 300_000 + b"end\n")
    status, headers, content = page.ask(f"/file?id={key}&name=run.log")
    assert headers["Content-Type"].startswith("text/plain")
    assert content.endswith(b"end\n")
    assert len(content) == files.MOST_TEXT
    details = page.get("/api/run", id=key)
    assert details["log"] == "run.log"
    assert "curves.png" in [file["name"] for file in details["files"]]


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.txt", "/etc/hostname.txt", "sub/../../secret.txt", "..\\secret.txt", ""),
        *("link.txt", "linked/secret.txt", "checkpoints/last.ckpt", "page.html", "folder.txt"),
        *("fake.png", "pipe.txt", "nothing.txt"),
    ],
)
def test_nothing_outside_a_run_is_shown(page: Browser, outputs: Path, name: str) -> None:
    folder = (outputs / "runs/first").absolute()
    secret = folder.parent / "secret.txt"
    secret.write_text("secret")
    (folder / "link.txt").symlink_to(secret)
    (folder / "linked").symlink_to(folder.parent)
    (folder / "sub").mkdir()
    (folder / "folder.txt").mkdir()
    (folder / "page.html").write_text("<p>")
    (folder / "fake.png").write_text(EVIL)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/last.ckpt").write_text("weights")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.txt")
    page.refused("/file", id=ids(page)["first"], name=name)
    names = [file["name"] for file in page.get("/api/run", id=ids(page)["first"])["files"]]
    assert "link.txt" not in names


def test_a_run_that_was_not_listed_has_no_files(page: Browser, tmp_path: Path) -> None:
    write_run(tmp_path / "elsewhere")
    page.refused("/file", id=str(tmp_path / "elsewhere"), name="curves.png")


# Stop

HOLD = """
import fcntl, os, signal, sys, time
lock = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
signal.sigtimedwait([signal.SIGTERM], 60)
print("asked to stop", flush=True)
"""


@pytest.fixture
def hold() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`hold(path, "train.py")`: a process that holds a lock, called by that name."""
    if holders.why_not():
        pytest.skip(holders.why_not())
    started: list[subprocess.Popen[str]] = []

    def start(path: Path, *words: str) -> subprocess.Popen[str]:
        blocked = {signal.SIGTERM}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)  # what a child inherits
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", HOLD, str(path), *words], stdout=subprocess.PIPE, text=True
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


Hold = Callable[..., subprocess.Popen[str]]


def test_a_run_is_stopped_once_it_is_confirmed(page: Browser, outputs: Path, hold: Hold) -> None:
    folder = write_run(outputs / "runs/now", "running")
    process = hold(folder, "/somewhere/train.py")
    assert process.stdout is not None
    again(page)
    key = ids(page)["now"]
    plan = page.get("/api/plan", action="stop", id=key)
    assert plan["process"] == process.pid
    assert f"Process {process.pid} gets SIGTERM" in plan["sentences"][0]
    status, _, content = page.do("stop", key, "another plan")
    assert status == 422
    assert "changed" in content["error"]
    assert process.poll() is None
    status, _, content = page.do("stop", key, plan["confirm"])
    assert (status, process.stdout.readline()) == (200, "asked to stop\n"), content
    assert process.wait(20) == 0
    assert "No process" in page.refused("/api/plan", action="stop", id=key)


def test_a_sweep_is_stopped_by_its_own_process(page: Browser, outputs: Path, hold: Hold) -> None:
    folder = outputs / "sweeps/grid"
    (folder / ".lock").touch()
    process = hold(folder / ".lock", "train.py")
    (sweep,) = again(page)["sweeps"]
    assert sweep["running"]
    key = f"sweep:{sweep['id']}"
    plan = page.get("/api/plan", action="stop", id=key)
    assert plan["process"] == process.pid
    assert "running" in page.refused("/api/plan", action="resume", id=key)
    assert page.do("stop", key, plan["confirm"])[0] == 200
    assert process.wait(20) == 0


def test_no_signal_for_a_process_that_is_no_training(
    page: Browser, outputs: Path, hold: Hold
) -> None:
    folder = write_run(outputs / "runs/now", "running")
    process = hold(folder, "notebook.py")
    again(page)
    assert "neither train.py" in page.refused("/api/plan", action="stop", id=ids(page)["now"])
    with pytest.raises(UserError, match="neither"):
        holders.stop(folder)
    assert process.poll() is None


def test_no_signal_for_a_process_that_holds_no_lock(tmp_path: Path, hold: Hold) -> None:
    """Whatever a folder says, and also where the lock's file is another program's."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    (one / "pid").write_text(str(os.getpid()))
    with pytest.raises(UserError, match="No process"):
        holders.stop(one)
    other.touch()
    process = hold(other, "train.py")
    assert holders.holder(other) == process.pid
    os.link(other, one / ".lock")
    assert holders.holder(one / ".lock") is None
    (one / ".link").symlink_to(other)
    assert holders.holder(one / ".link") is None


def test_an_inherited_lock_is_not_the_holder(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    if holders.why_not():
        pytest.skip(holders.why_not())
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    child = subprocess.Popen([sys.executable, "-c", "input()", "train.py"], pass_fds=[lock],
                             stdin=subprocess.PIPE)  # fmt: skip
    try:
        assert holders.holder(tmp_path) == os.getpid()
        os.close(lock)
        assert holders.holder(tmp_path) is None
    finally:
        child.communicate(b"\n")


def test_where_nothing_can_be_stopped_the_page_says_why(
    page: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders, "PROC", tmp_path / "proc")
    assert "/proc" in again(page)["cannot_stop"]
    sentence = page.refused("/api/plan", action="stop", id=ids(page)["first"])
    assert "Ctrl-C" in sentence


# Resume


def test_a_sweep_is_resumed_by_its_own_command(page: Browser, outputs: Path) -> None:
    (sweep,) = page.get("/api/runs")["sweeps"]
    plan = page.get("/api/plan", action="resume", id=f"sweep:{sweep['id']}")
    assert shlex.split(plan["words"]) == [
        *(sys.executable, str(APP / "train.py")),
        *("-m", "sweep.name=grid", "model=resnet20", "seed=0,1"),
    ]
    assert str(Path.cwd()) in plan["sentences"][0]


@pytest.mark.parametrize(
    "word",
    [
        "sweep.retries=2",
        "model.shortcut=A,none",
        "optimizer.lr='tag(log,interval(1e-3,1))'",
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=20",
        "hydra/launcher=slurm",
        "hydra.launcher.partition=gpu",
        "callbacks=[default,pictures,ema]",
        "+optimizer.eps=1e-8",
        "experiment=he2015/depth",
        "logger=[tensorboard,csv]",
        "trainer.max_time=00:01:00:00",
    ],
)
def test_plain_settings_are_taken_over(outputs: Path, word: str) -> None:
    words = command.resume_sweep(outputs / "sweeps/grid", f"{COMMAND} {shlex.quote(word)}")
    assert word in words


@pytest.mark.parametrize(
    "word",
    [
        "trust=[evil]",
        "--config-dir=/tmp/evil",
        "--config-dir",
        "--config-path=../evil",
        "-cd",
        "-cp",
        "--config-name=evil",
        "--package=evil",
        "model._target_=os.system",
        "+model.x={_target_:os.system}",
        "+callbacks.x._target_=os.system",
        "model={depth:20}",
        "hydra.searchpath=[file:///tmp/evil]",
        "hydra.sweep.dir=/tmp/elsewhere",
        "hydra.run.dir=/tmp/elsewhere",
        "hydra.launcher.preload=[evil]",
        "hydra.launcher.options=[--wrap=evil]",
        "hydra/launcher=evil",
        "hydra/launcher=lab,slurm",
        "hydra.callbacks.x.y=1",
        "hydra.sweeper.storage=mysql://evil.example/x",
        "logger=wandb",
        "logger.wandb.host=evil.example",
        "seed=${oc.env:SECRET}",
        "run_dir=/tmp/elsewhere",
        "resume=/tmp/elsewhere",
        "callbacks.best.dirpath=/tmp/elsewhere",
        "callbacks.best.filename=../../x",
        "trainer.default_root_dir=x",
        "model=../../evil",
        "model=/tmp/evil",
        "model@x=resnet20",
        "data.root=/nowhere/at/all",
        "data.cache_dir=/tmp",
        "sweep.force=true",
        "sweep.name=other",
        "x",
        "; rm -rf /",
        "seed=0\n1",
        "seed=\\",
    ],
)
def test_words_that_may_name_code_are_left_to_the_user(outputs: Path, word: str) -> None:
    line = f"{COMMAND} {shlex.quote(word)}"
    with pytest.raises(UserError, match="type it yourself") as refused:
        command.resume_sweep(outputs / "sweeps/grid", line)
    assert shlex.quote(word) in str(refused.value)


@pytest.mark.parametrize(
    "line",
    [
        "python evil.py -m sweep.name=grid seed=0,1",
        "/bin/sh -c evil",
        "python -c evil",
        "resnet-lab train sweep.name=grid seed=0",
        "resnet-lab ui",
        "python",
        "",
        "'",
        None,
        ["python"],
    ],
)
def test_other_programs_are_left_to_the_user(outputs: Path, line: Any) -> None:
    with pytest.raises(UserError):
        command.resume_sweep(outputs / "sweeps/grid", line)


def test_data_and_caches_that_are_there_may_be_named(outputs: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    word = f"data.root={tmp_path}/images"
    assert word in command.resume_sweep(outputs / "sweeps/grid", f"{COMMAND} {word}")


def test_a_moved_sweep_is_not_begun_anew_elsewhere(outputs: Path) -> None:
    (outputs / "sweeps/grid").rename(outputs / "grid")
    with pytest.raises(UserError, match="start resnet-lab ui where"):
        command.resume_sweep(outputs / "grid", COMMAND)


def test_a_sweep_without_a_name_is_resumed_under_its_folders(outputs: Path) -> None:
    line = "resnet-lab train -m seed=0,1"
    assert command.resume_sweep(outputs / "sweeps/grid", line)[-1] == "sweep.name=grid"


def test_resume_starts_what_was_shown_and_survives_the_server(
    page: Browser, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Path("train.py").absolute()
    script.write_text("import os, sys; print(sys.argv[1:], os.getsid(0) == os.getpid())\n")
    monkeypatch.setattr(command, "APP", script.parent)
    folder = write_run(outputs / "runs/half", "interrupted")
    again(page)
    key = ids(page)["half"]
    assert "no checkpoint" in page.refused("/api/plan", action="resume", id=key)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/last.ckpt").touch()
    plan = page.get("/api/plan", action="resume", id=key)
    assert shlex.split(plan["words"])[2] == f'resume="{folder.absolute()}"'
    status, _, content = page.do("resume", key, plan["confirm"])
    assert status == 200, content
    console, until = folder / "console.log", time.monotonic() + 20
    while not console.read_text() and time.monotonic() < until:
        time.sleep(0.02)
    assert console.read_text() == f"['resume=\"{folder.absolute()}\"'] True\n"


def test_a_resume_that_fails_is_said(
    page: Browser, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Path("train.py").absolute()
    script.write_text("import sys; sys.exit('error: no luck')\n")
    monkeypatch.setattr(command, "APP", script.parent)
    (sweep,) = page.get("/api/runs")["sweeps"]
    key = f"sweep:{sweep['id']}"
    plan = page.get("/api/plan", action="resume", id=key)
    assert page.do("resume", key, plan["confirm"])[0] == 200
    until = time.monotonic() + 20
    while not (notices := page.get("/api/runs")["notices"]) and time.monotonic() < until:
        time.sleep(0.05)
    assert "exit status 1: error: no luck" in notices[0]


def test_what_is_done_or_of_a_sweep_is_not_resumed(page: Browser) -> None:
    assert "finished" in page.refused("/api/plan", action="resume", id=ids(page)["first"])
    assert "sweep" in page.refused("/api/plan", action="resume", id=ids(page)["seed=0"])
    page.refused("/api/plan", action="erase", id=ids(page)["first"])


# The command


def test_mistakes_are_one_sentence(refused: Callable[..., str], page: Browser) -> None:
    assert "no folder" in refused("ui", "nowhere")
    port = str(page.guard.port)
    assert f"Port {port} is in use" in refused("ui", ".", "--port", port)
    assert "65535" in refused("ui", ".", "--port", "70000")

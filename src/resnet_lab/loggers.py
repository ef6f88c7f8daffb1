"""What every logger of a run gets: config, name, sweep, tags, pictures and final scores."""

import csv
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from omegaconf import OmegaConf

from resnet_lab.board import Board, optional
from resnet_lab.config.compose import flat
from resnet_lab.config.errors import UserError
from resnet_lab.files import read_json, read_rows, replacing, write_json
from resnet_lab.run.folder import RunFolder
from resnet_lab.run.state import State

log = logging.getLogger(__name__)

SQLITE = "sqlite:///"


class Wandb(WandbLogger):
    """Weights & Biases: named after the run's folder, grouped by sweep, continued by a resumed run.

    Args:
        run_dir: the run's folder.
        options: of Lightning's WandbLogger and of wandb.init; None is the default.
    """

    def __init__(self, run_dir: str, **options: Any) -> None:
        self.folder = RunFolder(run_dir)
        own = {"name": self.folder.path.name, "group": sweep_of(self.folder), "save_dir": run_dir}
        own["id"] = _read_id(self.folder, "wandb") or uuid4().hex[:8]
        given = {key: value for key, value in options.items() if value is not None}
        super().__init__(**{**own, **given})

    def begin(self, config: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        import wandb

        try:
            run: Any = self.experiment
        except wandb.Error as error:
            reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
            raise UserError(
                f"logger=wandb: {reason}; run `wandb login`, or set logger.wandb.offline=true."
            ) from error
        _write_id(self.folder, "wandb", run.id)
        run.tags = tuple({*(run.tags or ()), *tags.values()})
        self.log_hyperparams(dict(config))

    def close(self, status: str) -> None:
        run: Any = self.experiment
        run.finish(exit_code=int(not State(status).done))


class MLflow(MLFlowLogger):
    """MLflow: named after the run's folder, tagged with its sweep, continued by a resumed run.

    Args:
        run_dir: the run's folder.
        tracking_uri: a server, or one database of many runs: "sqlite:///" and a file. Pictures go
            into a folder beside that file.
        options: of Lightning's MLFlowLogger; None is the default.
    """

    def __init__(self, run_dir: str, tracking_uri: str, **options: Any) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self.folder = RunFolder(run_dir)
        given = {key: value for key, value in options.items() if value is not None}
        name = given.setdefault("experiment_name", "resnet-lab")
        pictures = given.pop("artifact_location", None)
        if pictures is None and tracking_uri.startswith(SQLITE):
            database = Path(tracking_uri.removeprefix(SQLITE)).absolute()
            pictures = database.with_suffix("").as_uri()
        run_id = _read_id(self.folder, "mlflow")
        with _one_at_a_time(tracking_uri):
            client = MlflowClient(tracking_uri)
            if client.get_experiment_by_name(name) is None:
                client.create_experiment(name, pictures)
            try:
                client.get_run(run_id or "")
            except MlflowException:  # none yet, or of another server
                run_id = None
            own = {"run_name": self.folder.path.name, "run_id": run_id}
            super().__init__(tracking_uri=tracking_uri, **{**own, **given})

    def begin(self, config: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        client = self.experiment
        run_id = str(self.run_id)
        _write_id(self.folder, "mlflow", run_id)
        client.update_run(run_id, "RUNNING")
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
        if not client.get_run(run_id).data.params:  # they cannot be changed
            self.log_hyperparams(flat(config))

    def close(self, status: str) -> None:
        ended = {State.FAILED: "FAILED"}.get(State(status), "KILLED")
        self.finalize("FINISHED" if State(status).done else ended)


class CSV(CSVLogger):
    """Lightning's CSVLogger, but that a resumed run goes on with its file, not deleting it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.step: int | None = None

    def resume(self, step: int) -> None:
        """Before anything is written: rows of later steps will be written again."""
        self.step = step

    @optional
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        super().log_metrics(metrics, step)

    @optional
    def save(self) -> None:
        super().save()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is not None:
            return self._experiment
        file = Path(self.log_dir, "metrics.csv")
        kept = file.with_name(".metrics.csv")  # meanwhile, and after a kill in between
        if file.exists():
            rows = [row for row in read_rows(file) if self.step is None or _step(row) <= self.step]
            with replacing(kept, newline="") as content:
                columns = list(rows[0]) if rows else ["step"]
                writer = csv.DictWriter(content, columns, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*Previous log files in this directory.*")
            made: Any = super().experiment
        if kept.exists():
            kept.replace(file)
            with file.open(newline="") as content:
                made.metrics_keys = next(csv.reader(content))
        return made


def _step(row: Mapping[str, str]) -> float:
    try:
        return float(row["step"])
    except (KeyError, ValueError):
        return math.inf


def begin(
    loggers: Sequence[Logger], config: Mapping[str, Any], tags: Mapping[str, str], resumed: bool
) -> None:
    """Before the first figure, on the first process: the run's config and its tags.

    Args:
        config: resolved; what environment variables have said is not in it.
        tags: texts by name, such as the net's and the sweep's.
        resumed: the run has been here before.

    Raises:
        UserError: a logger has no access to its server.
    """
    for logger in loggers:
        if isinstance(logger, Wandb | MLflow):
            logger.begin(config, tags)
        elif not isinstance(logger, Board):
            logger.log_hyperparams(flat(config))
        elif not resumed:
            logger.log_config(OmegaConf.to_yaml(OmegaConf.create(dict(config))))


def picture(loggers: Sequence[Logger], path: Path, pixels: Any, step: int) -> None:
    """A picture of the run's folder, uint8 [height, width, 3], for the loggers that show any."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            board: Any = logger.experiment
            board.add_image(path.stem, pixels, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(path.stem, [str(path)], step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifact(str(logger.run_id), str(path))


def end(
    loggers: Sequence[Logger],
    status: str,
    settings: Mapping[str, Any],
    scores: Mapping[str, float],
    step: int,
) -> None:
    """When the run has ended, on the first process: the final scores, where it has some.

    Args:
        settings: what tells this run from others, for the table of runs in TensorBoard.
    """
    final = {f"final/{name}": score for name, score in scores.items()}
    for logger in loggers:
        try:
            if isinstance(logger, Board):
                if final:
                    logger.log_result(dict(settings), final, step)
            elif final:
                logger.log_metrics(final, step)
            if isinstance(logger, Wandb | MLflow):
                logger.close(status)
            elif final:
                logger.finalize("success")
        except Exception as error:  # the run's own files are written
            log.warning(f"{type(logger).__name__}: {type(error).__name__}: {error}")


def sweep_of(folder: RunFolder) -> str | None:
    """The name of the sweep that a run belongs to; None for a single run."""
    return folder.path.absolute().parent.name if folder.job.exists() else None


# A run's ids at servers, kept in its folder so that a resumed run is the same one there.


def _ids(folder: RunFolder) -> dict[str, Any]:
    try:
        ids = read_json(folder.loggers)
    except (OSError, ValueError):
        return {}
    return ids if isinstance(ids, dict) else {}


def _read_id(folder: RunFolder, logger: str) -> str | None:
    text = str(_ids(folder).get(logger))
    return text if re.fullmatch(r"[0-9a-f]{8,32}", text) else None


def _write_id(folder: RunFolder, logger: str, text: str) -> None:
    write_json(folder.loggers, {**_ids(folder), logger: text})


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Jobs of a sweep that begin together would all make the same database and experiment."""
    file = Path(uri.removeprefix(SQLITE))
    if uri.startswith(SQLITE):
        file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock") if uri.startswith(SQLITE) else nullcontext():
        yield

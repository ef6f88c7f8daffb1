"""For TensorBoard: the mean over the repeats of each setting, as runs of their own."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, stdev

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.report.runs import Run, Study, epochs, read
from resnet_lab.report.stats import summarise
from resnet_lab.run.folder import RunFolder
from resnet_lab.run.state import State

# One chart shows both: each is a run below the setting's, with the same figures.
SPLITS = ("train", "val")
FIGURES = {"acc": "accuracy", "loss": "loss"}
BELOW, ABOVE = "{}_band/minus_sd", "{}_band/plus_sd"
LEFT_OUT = (State.FAILED, State.PRUNED, "unreadable")  # which have not all epochs


class MeanRuns:
    """Writes what a sweep's settings have in the mean, and more of it while the sweep goes on.

    An epoch of a setting is written as soon as each of its jobs has it, so that a mean never is
    over some of them.

    Args:
        sweep: the folder of the sweep.
        folder: where the event files go, a folder for each setting and split.
    """

    def __init__(self, sweep: Path, folder: Path) -> None:
        self.sweep, self.folder = sweep, folder
        self._writers: dict[Path, EventFileWriter] = {}
        self._written: dict[Path, int] = {}
        self._seen: object = None

    def write(self) -> None:
        """Add the epochs that are new since the last call."""
        with suppress(OSError, UserError):  # a folder that is just being made or removed
            seen = self._state()
            if seen != self._seen:
                for study in read([self.sweep]):
                    self._write_study(study)
                self._seen = seen

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _state(self) -> object:
        """Changes with every figure that a job writes."""
        files = (
            file
            for job in sorted(self.sweep.iterdir())
            for file in (RunFolder(job).metrics, RunFolder(job).result)
            if file.is_file()
        )
        return [(file, file.stat().st_mtime_ns, file.stat().st_size) for file in files]

    def _write_study(self, study: Study) -> None:
        for row in summarise(study):
            jobs = [job for job in row.jobs if job.state not in LEFT_OUT]
            if not jobs:
                continue
            pairs = zip(study.factors, row.setting, strict=True)
            values = ",".join(f"{study.short(key)}={value}" for key, value in pairs)
            name = printable(values).replace("/", "-") or study.name
            self._write_setting(f"mean of {len(jobs)}, {name}", jobs)

    def _write_setting(self, name: str, jobs: Sequence[Run]) -> None:
        tables = [epochs(job.folder)[0] for job in jobs]
        shared = sorted(set.intersection(*(set(table) for table in tables)))
        for split in SPLITS:
            place = self.folder / name / split
            new = [epoch for epoch in shared if epoch > self._written.get(place, 0)]
            for epoch in new:
                rows = [table[epoch] for table in tables]
                figures = _spreads(rows, split)
                if figures:
                    self._writer(place).add_event(_event(figures, epoch))
                self._written[place] = epoch
            if new and place in self._writers:
                self._writers[place].flush()

    def _writer(self, place: Path) -> EventFileWriter:
        if place not in self._writers:
            place.mkdir(parents=True, exist_ok=True)
            self._writers[place] = EventFileWriter(str(place))
            self._writers[place].add_event(Event(summary=_layout()))
        return self._writers[place]


def _spreads(rows: Sequence[dict[str, float]], split: str) -> dict[str, float]:
    """The mean of each figure of an epoch, and a standard deviation on each side of it."""
    figures: dict[str, float] = {}
    for key, name in FIGURES.items():
        values = [row[f"{split}/{key}"] for row in rows if f"{split}/{key}" in row]
        if len(values) < len(rows):
            continue
        mean, sd = fmean(values), stdev(values) if len(values) > 1 else 0.0
        figures |= {name: mean, BELOW.format(name): mean - sd, ABOVE.format(name): mean + sd}
    return figures


def _event(figures: dict[str, float], epoch: int) -> Event:
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
    return Event(step=epoch, summary=Summary(value=values))


def _layout() -> Summary:
    """Charts under CUSTOM SCALARS that draw the band around the mean."""
    charts = [
        layout_pb2.Chart(
            title=f"{name}: mean and standard deviation",
            margin=layout_pb2.MarginChartContent(
                series=[
                    layout_pb2.MarginChartContent.Series(
                        value=name, lower=BELOW.format(name), upper=ABOVE.format(name)
                    )
                ]
            ),
        )
        for name in FIGURES.values()
    ]
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title="over seeds", chart=charts)])
    # By hand: TensorBoard's own function for it asks for TensorFlow.
    text = TensorProto(dtype=DT_STRING, string_val=[layout.SerializeToString()])
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME)
    tag, of_plugin = metadata.CONFIG_SUMMARY_TAG, SummaryMetadata(plugin_data=plugin)
    return Summary(value=[Summary.Value(tag=tag, tensor=text, metadata=of_plugin)])

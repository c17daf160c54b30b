"""Writes the generated slices of one job as they are predicted: they are never all in memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from inference.account import Account
from inference.derived import Series
from inference.geometry import Layout
from inference.intensity import PixelReader, generated_format, generated_values
from inference.model import Limits, Model, Prediction, Step
from inference.placement import Planned
from inference.previews import Previews
from inference.request import File, Progress, Resources
from inference.runner import Runner, share_cores
from inference.trust import Judge
from inference.volume import Volume

Report = Callable[[Progress], None]
Predictions = Iterator[tuple[Step, Prediction]]


@dataclass(frozen=True, eq=False)
class Generating:
    """What a job needs to turn predictions into files."""

    layout: Layout
    slices: Sequence[Planned]
    series: Series
    pixels: PixelReader
    previews: Previews | None
    account: Account

    def run(
        self,
        model: Model,
        steps: Sequence[Step],
        device: str,
        resources: Resources,
        *,
        judge: Judge,
        report: Report,
        cancelled: Callable[[], bool],
    ) -> dict[str, File]:
        """Every generated slice, written; raises Unprocessable where the judge holds them."""
        volume = Volume(
            self.layout.geometry, lambda i: self.pixels.hounsfield(self.layout.headers[i])
        )
        at_once = share_cores(model, resources.threads)
        runner = Runner(model, volume, Limits(device, resources.batch), at_once)
        files = self._written(runner.predictions(steps, cancelled=cancelled), judge, report)
        limits = runner.limits
        self.account.facts |= {"device": limits.device, "limits": asdict(limits), **judge.facts}
        self.account.notes += [f"out of memory: went on with {rung}" for rung in runner.lowered]
        self.account.notes += judge.notes
        judge.check()
        return files

    def _written(self, predictions: Predictions, judge: Judge, report: Report) -> dict[str, File]:
        places = {
            (slice_.gap, slice_.fraction): place
            for place, slice_ in enumerate(self.slices)
            if slice_.is_generated
        }
        files: dict[str, File] = {}
        report(Progress("predicting", 0, len(places)))
        while True:
            with self.account.phase("predicting"):
                found = next(predictions, None)
            if found is None:
                return files
            step, prediction = found
            with self.account.phase("writing"):
                for number, fraction in enumerate(step.fractions):
                    place = places[step.gap, fraction]
                    file = self._write(place, number, prediction, judge)
                    files[file.name] = file
            report(Progress("predicting", len(files), len(places)))

    def _write(self, place: int, number: int, prediction: Prediction, judge: Judge) -> File:
        slice_ = self.slices[place]
        pair = self.layout.headers[slice_.base], self.layout.headers[slice_.base + 1]
        rescale = slice_.rescale_of(self.layout)
        chosen = judge.chosen(slice_.position, number, prediction)
        offsets = self.layout.geometry.offsets(slice_.base, slice_.base + 1, slice_.fraction)
        stored = generated_values(chosen.plane, *pair, self.pixels, rescale, offsets)
        if self.previews is not None:
            written = generated_format(pair[0], rescale).hounsfield(stored)
            self.previews.generated(place, written, prediction, number)
        return self.series.write(place, stored, chosen.note)

"""Generating ahead: what can be made of a stack while its series still arrives.

A gap is worth it where nothing that may still come is likely to lie in it. That is a guess, which
decides about time alone: a draft counts for what is the same to the bit (`inference/drafts.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from inference.drafts import Drafts, StackDrafts
from inference.geometry import GAP_TOLERANCE_MM, Layout, crosses
from inference.model import Limits, Prediction, Step
from inference.pixels import PixelReader
from inference.registry import choose_device, load_once
from inference.request import ModelSpec, Parameters, Resources
from inference.runner import Runner, check_steps, share_cores
from inference.volume import Volume

KEPT_BYTES = 32 << 20  # of decoded slices: neighbours that the next gaps need too

# A step by the files that it is made of: the same slices at another place of the stack are no news.
Made = tuple[str, tuple[Path, ...], tuple[float, ...], bool]


@dataclass
class AheadOfSeries:
    """The work on one series that arrives; `made` is not made again."""

    drafts: Drafts
    pixels: PixelReader = field(default_factory=lambda: PixelReader(KEPT_BYTES))
    made: set[Made] = field(default_factory=set)

    def make(
        self,
        layout: Layout,
        spec: ModelSpec,
        parameters: Parameters,
        resources: Resources,
        *,
        is_settled: bool,
        stopped: Callable[[], bool],
    ) -> None:
        """Make drafts of what is sure; of all, surveys too, where nothing seems to come any more.

        Raises Cancelled where it is stopped, which is between two steps, and Unprocessable.
        """
        device = choose_device(resources.device, spec)
        model = load_once(spec, device)
        if not hasattr(model, "draft"):
            return
        planned = tuple(model.plan(layout.geometry, parameters))
        check_steps(planned, len(layout.headers))
        steps = [
            step
            for step in planned
            if not crosses(step, layout.missing)
            and self._name(spec, step, layout) not in self.made
            and (is_settled or is_sure(step, layout))
        ]
        if not steps:
            return
        drafts = StackDrafts(self.drafts, model, layout)
        read = self.pixels.hounsfield
        volume = Volume(layout.geometry, lambda index: read(layout.headers[index]))
        runner = Runner(
            model,
            volume,
            Limits(device, resources.batch),
            share_cores(model, resources.threads),
            check=check_nothing,
            run=drafts.make,
        )

        def is_enough() -> bool:
            return stopped() or not self.drafts.has_room

        for step, _ in runner.predictions(steps, cancelled=is_enough):
            self.made.add(self._name(spec, step, layout))
        self.made |= {self._name(spec, step, layout) for step in steps}

    def _name(self, spec: ModelSpec, step: Step, layout: Layout) -> Made:
        paths = tuple(layout.headers[index].path for index in step.needs)
        return spec.name, paths, step.fractions, step.survey is not None


def is_sure(step: Step, layout: Layout) -> bool:
    """True for a gap amid slices that follow one another by number, as near as any of the stack."""
    if step.gap is None or len(layout.headers) <= len(step.needs):
        return False
    first, last = step.needs[0], step.needs[-1]
    if step.gap - first != last - step.gap - 1:  # an end, where more may come
        return False
    gaps = layout.geometry.gaps_mm
    is_even = bool((gaps[first:last] <= gaps.min() + GAP_TOLERANCE_MM).all())
    return is_even and _follow(
        [header.integer("InstanceNumber") for header in layout.headers[first : last + 1]]
    )


def _follow(numbers: Sequence[int | None]) -> bool:
    steps = {
        None if first is None or second is None else second - first
        for first, second in pairwise(numbers)
    }
    return steps in ({1}, {-1})


def check_nothing(step: Step, prediction: Prediction, volume: Volume) -> None:
    """A draft is checked with the prediction that is made of it."""
    del step, prediction, volume

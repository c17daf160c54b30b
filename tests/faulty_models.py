"""A site's own models that misbehave, each in one way; named in a `[[model]]` of a test's node."""

import os
import time
from collections.abc import Sequence

import numpy as np

from inference.model import Limits, Parameters, Prediction, Produces, Step, Window
from inference.models.classical import Linear
from inference.volume import Geometry

HURRY = "MIDSLICE_TEST_HURRY"  # names the file that says that nobody needs slowness any more


class _Wrapped:
    """Linear interpolation, until `misbehave` does something else."""

    name = "faulty"
    version = "0.1.0"
    weights_sha256 = ""
    produces: Produces = "slices"

    def __init__(self) -> None:
        self._linear = Linear()

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        return self._linear.plan(geometry, parameters)

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        self.misbehave(step)
        return self._linear.run(step, slices, limits)

    def misbehave(self, step: Step) -> None:
        """What this model does wrong before a step."""


class Slow(_Wrapped):
    """Takes half a second a gap, so that something can happen in the middle; then it hurries."""

    def misbehave(self, step: Step) -> None:
        if not os.path.exists(os.environ[HURRY]):  # noqa: PTH110
            time.sleep(0.5)


class Leisurely(_Wrapped):
    """Takes a quarter of a second a gap: longer than an order is on its way."""

    def misbehave(self, step: Step) -> None:
        time.sleep(0.25)


class Raises(_Wrapped):
    """Raises an exception that holds what must not stand in a log."""

    def misbehave(self, step: Step) -> None:
        raise ValueError("patient DOE^JANE")


class Dies(_Wrapped):
    """Takes its process with it."""

    def misbehave(self, step: Step) -> None:
        os._exit(9)


class DiesOnce(_Wrapped):
    """Takes its process with it the first time, which a file in the current folder remembers."""

    def misbehave(self, step: Step) -> None:
        mark = os.environ["MIDSLICE_TEST_MARK"]
        if not os.path.exists(mark):  # noqa: PTH110
            open(mark, "w").close()  # noqa: PTH123
            os._exit(9)


class Never(_Wrapped):
    """Never returns and never looks whether it is cancelled."""

    def misbehave(self, step: Step) -> None:
        while True:
            time.sleep(3600)


class Hungry(_Wrapped):
    """Takes memory until somebody stops it."""

    def misbehave(self, step: Step) -> None:
        taken = []
        for _ in range(60):
            taken.append(np.ones(50_000_000 // 8))
            time.sleep(0.1)


class FindsNone(_Wrapped):
    """Finds no memory, however little it is to do at once."""

    def misbehave(self, step: Step) -> None:
        raise MemoryError


class NotFinite(_Wrapped):
    """Answers NaN."""

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        made = self._linear.run(step, slices, limits)
        return Prediction(planes=tuple(np.full_like(plane, np.nan) for plane in made.planes))


class Missing(_Wrapped):
    """Answers with one plane too few."""

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        return Prediction(planes=self._linear.run(step, slices, limits).planes[1:])


class MadeOnce(_Wrapped):
    """Can be made once in a process, as if the memory held no second one."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1
        if self.made > 1:
            raise MemoryError

    def misbehave(self, step: Step) -> None:
        """Nothing."""

"""One build of the generator as a process of its own: it fills made gaps when it is asked to.

Each line that it reads is a factor and how many slices are received; it answers with milliseconds a
generated slice, by the clock and of the processor. Another checkout runs this text too, so that it
uses nothing but what every build has.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from inference import registry
from inference.model import Limits, Model, Parameters
from inference.request import ModelSpec
from inference.runner import Runner, share_cores
from inference.volume import Volume
from tests.models.made import made_geometry, made_planes

SIDE = 512


class Milliseconds(NamedTuple):
    """Of one generated slice, surveys included."""

    wall: float
    processor: float


class Build:
    """The build of a checkout, with its own environment, in a process that waits for orders."""

    def __init__(self, checkout: Path) -> None:
        self._child = subprocess.Popen(
            [checkout / ".venv" / "bin" / "python", "-c", Path(__file__).read_text()],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def filled(self, factor: int, received: int) -> Milliseconds:
        """The time of one slice."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{factor} {received}\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        assert answer, f"{self._child.args}: ended with {self._child.wait()}"
        return Milliseconds(*map(float, answer.split()))

    def close(self) -> None:
        """End the process."""
        self._child.communicate()


def _fill(model: Model, factor: int, received: int) -> Milliseconds:
    geometry = made_geometry(received, SIDE, SIDE)
    planes = made_planes(geometry)
    volume = Volume(geometry, lambda index: planes[index].copy())
    steps = model.plan(geometry, Parameters(factor=factor))
    began, spent = time.perf_counter(), time.process_time()
    runner = Runner(model, volume, Limits(), share_cores(model, 0))
    for _ in runner.predictions(steps, cancelled=lambda: False):
        pass
    taken = time.perf_counter() - began, time.process_time() - spent
    slices = (received - 1) * (factor - 1)
    return Milliseconds(*(1000.0 * seconds / slices for seconds in taken))


def main() -> None:
    """Answer until there is nothing more to read."""
    model = registry.load(ModelSpec("midslice"))
    for line in sys.stdin:
        sys.stdout.write("{} {}\n".format(*_fill(model, *map(int, line.split()))))
        sys.stdout.flush()


if __name__ == "__main__":
    main()

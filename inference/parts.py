"""Parts of a long stack that other workers draft while one worker makes the series.

That worker goes from the first gap to the last; the others draft parts from the last gap backwards,
into files beside its result, and it uses what is there when it comes to a gap. A draft counts for
what is the same to the bit (`inference/drafts.py`): with or without it the series is the same, and
a worker that is late, slow or dead costs time alone.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np

from inference import geometry
from inference.ahead import check_nothing
from inference.dataset import read_headers
from inference.drafts import Drafts, Key, StackDrafts
from inference.geometry import Layout
from inference.model import Draft, Limits, Measured, Step
from inference.pixels import PixelReader
from inference.registry import choose_device, load_once
from inference.request import Part, Request
from inference.runner import Runner, check_steps, share_cores
from inference.stacks import stacks_of
from inference.volume import Plane, Volume

FOLDER = "parts"  # in that of the result, until the series is made
MOST_PLANES = 64  # of a draft: three for each slice of a gap
KEPT_BYTES = 32 << 20  # of decoded slices: neighbours that the next gaps need too


class DraftFiles:
    """Drafts as files of arrays in a folder that two workers see; no file can run anything."""

    def __init__(self, folder: Path, memory: Drafts | None = None) -> None:
        self._folder = folder
        self._memory = memory  # asked first

    def holds(self, series_uid: str) -> bool:
        """True: a draft may be there by the time that it is asked for."""
        del series_uid
        return True

    def find(self, series_uid: str, key: Key) -> Draft | Measured | None:
        """The draft of that step; None where there is none."""
        if self._memory is not None and (made := self._memory.find(series_uid, key)) is not None:
            return made
        try:
            with (self._folder / key.hex()).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                planes: list[Plane] = []
                while file.tell() < size and len(planes) < MOST_PLANES:
                    planes.append(np.load(file, allow_pickle=False))
        except (OSError, ValueError, EOFError):
            return None
        return Draft(tuple(planes)) if planes else None

    def keep(self, series_uid: str, key: Key, made: Draft | Measured) -> None:
        """Write a draft; OSError where the series is made already. A survey is not kept."""
        del series_uid
        if not isinstance(made, Draft):
            return
        path = self._folder / f".{key.hex()}"
        with path.open("wb") as file:
            for plane in made.planes:
                np.save(file, plane, allow_pickle=False)
        path.rename(self._folder / key.hex())


def opened(request: Request, memory: Drafts | None) -> DraftFiles:
    """The drafts of others for a request, in a new folder."""
    folder = request.folder / FOLDER
    folder.mkdir(exist_ok=True)
    return DraftFiles(folder, memory)


def closed(request: Request) -> None:
    """Remove what others drafted; one that still drafts finds no folder any more."""
    gone = request.folder.with_name(f"{request.folder.name}.{FOLDER}")
    try:
        (request.folder / FOLDER).rename(gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone, ignore_errors=True)


@dataclass
class PartMaker:
    """Drafts parts of requests in one worker; what it has read of the last stack is kept."""

    _folder: Path | None = None
    _layout: Layout | None = None
    _pixels: PixelReader = field(default_factory=lambda: PixelReader(KEPT_BYTES))

    def make(self, part: Part, cancelled: Callable[[], bool]) -> int:
        """Draft the gaps of a part, the last first; the number of drafts."""
        request = part.request
        layout = self._read(request)
        model = load_once(request.model, choose_device(request.resources.device, request.model))
        if layout is None or not hasattr(model, "draft"):
            return 0
        steps = tuple(model.plan(layout.geometry, request.parameters))
        check_steps(steps, len(layout.headers))
        files = DraftFiles(request.folder / FOLDER)
        drafts = StackDrafts(files, model, layout)
        headers, read = layout.headers, self._pixels.hounsfield
        runner = Runner(
            model,
            Volume(layout.geometry, lambda index: read(headers[index])),
            Limits(choose_device(request.resources.device, request.model), request.resources.batch),
            share_cores(model, request.resources.threads),
            check=check_nothing,
            run=drafts.make,
        )
        mine = chosen(steps, part)
        return sum(1 for _ in runner.predictions(mine, cancelled=cancelled))

    def _read(self, request: Request) -> Layout | None:
        if self._folder != request.folder:
            stacks = stacks_of(read_headers(request.sources))
            self._folder = request.folder
            self._pixels = PixelReader(KEPT_BYTES)
            self._layout = geometry.measure(stacks[0]) if len(stacks) == 1 else None
        return self._layout


def chosen(steps: Sequence[Step], part: Part) -> list[Step]:
    """The gaps of a part, the last one first: the worker that makes the series comes to it last."""
    gaps = [step for step in steps if step.survey is None]
    ends = accumulate(len(step.fractions) for step in gaps)
    inside = (step for step, end in zip(gaps, ends, strict=True) if part.first < end <= part.last)
    return list(inside)[::-1]

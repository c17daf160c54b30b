"""What a series costs that came compressed: decoding a slice, and the whole job.

Each lossless transfer syntax that CT scanners and archives send stands beside the same slices
uncompressed, in the same run. Decoding is to bound nothing: a job takes as long as the model does.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydicom.uid import (
    UID,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from inference.dataset import read_headers
from inference.pixels import decode
from inference.request import Parameters
from tests import series
from tests.benchmarks import job
from tests.benchmarks.rig import Setting
from tests.benchmarks.table import RatioBound, Row, Subject

NAME = "compressed"
MODEL, FACTOR, SLICES = "midslice", 4, 34
SYNTAXES: dict[str, UID] = {
    "JPEG Lossless SV1": JPEGLosslessSV1,
    "JPEG-LS lossless": JPEGLSLossless,
    "JPEG 2000 lossless": JPEG2000Lossless,
    "HTJ2K lossless": HTJ2KLossless,
    "RLE": RLELossless,
}
NATIVE = "uncompressed"
MOST_OF_NATIVE = 1.15
BOUNDS = tuple(RatioBound(NAME, f"job, {name}", at_most=MOST_OF_NATIVE) for name in SYNTAXES)


def measure(setting: Setting) -> Subject:
    """Milliseconds to decode a slice in one thread, and seconds of a whole job."""
    chest = series.long(SLICES, setting.folder / "chest")
    native = series.native(chest, setting.folder / NATIVE)
    files = {NATIVE: native} | {
        name: series.compressed(chest, setting.folder / name.replace(" ", "-"), syntax)
        for name, syntax in SYNTAXES.items()
    }
    passes: dict[str, Callable[[], float]] = {}
    for name, of_syntax in files.items():
        passes[f"decode, {name}"] = partial(_milliseconds, of_syntax)
        passes[f"job, {name}"] = partial(_seconds, of_syntax, setting.folder / "job")
    for name, once in passes.items():
        if name.startswith("decode") or name.endswith(NATIVE):
            once()  # the first one loads its decoder, or the model
    values = setting.measure(passes)
    rows = [Row(*_row(name), tuple(values[name]), _reference(name)) for name in sorted(passes)]
    caption = (
        f"a slice of 512 x 512 decoded by one thread, and a job of {SLICES} such slices of a "
        f"chest with {MODEL} at {FACTOR}x, from received files to verified ones"
    )
    return Subject(NAME, caption, tuple(rows))


def _row(name: str) -> tuple[str, str]:
    return name, "ms" if name.startswith("decode") else "s"


def _reference(name: str) -> str:
    return f"{name.partition(',')[0]}, {NATIVE}"


def _milliseconds(files: Sequence[Path]) -> float:
    headers = read_headers(files)
    began = time.perf_counter()
    for header in headers:
        decode(header)
    return (time.perf_counter() - began) * 1000.0 / len(headers)


def _seconds(files: Sequence[Path], folder: Path) -> float:
    return job.measured(MODEL, files, folder, Parameters(factor=FACTOR))["seconds"]

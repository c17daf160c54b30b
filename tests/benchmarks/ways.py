"""The files on the way of an instance, a job, a delivery and a requeue, counted in a real node.

`python -m tests.benchmarks.ways` prints them. A file is on a way where one of its functions runs
between the call of the way's first function and its return, in that thread, or anywhere in a
worker process while it has the job. What defines values is not counted (records, tables, errors,
the configuration, the release), nor is the log, which formats the events of every way, nor are the
files of the model, which is a plug-in.
"""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType

from node.demo.peers import NodeChild
from tests import phantoms, series
from tests.node_process import NodeProcess, destination, route
from tests.peers import storescp, storescu

SECONDS = 300.0
PACKAGES = ("node/", "storage/", "inference/")
ROOT = Path(__file__).parents[2]
# The first functions of each way; that of a job goes on in its worker.
WAYS = {
    "instance": ("_store", "_Accepted.answer"),
    "job": ("Queue.claim", "Supervisor._do", "_run"),
    "delivery": ("Ledger.claim", "Deliverer._do"),
    "requeue": ("Queue.requeue", "Arrivals.follow_routes"),
}
FILES = {
    "_store": "node/dicom/scp.py",
    "_Accepted.answer": "node/dicom/scp.py",
    "_run": "node/work/executor.py",
}
NOT_COUNTED = (
    *("storage/records.py", "storage/schema.py", "storage/errors.py", "inference/errors.py"),
    *("node/errors.py", "node/config/", "inference/release.py", "node/log.py", "inference/models/"),
)
# `midslice`, in each of whose processes the tracer runs: a child that is spawned begins here too.
PROGRAM = """#!{python}
import sys
sys.path.insert(0, "{root}")
from tests.benchmarks.ways import trace
trace("{notes}")
if __name__ == "__main__":
    from node.cli import main
    main()
"""


class Tracer:
    """Notes, for each way that is open in a thread, the files of the functions that run."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / str(os.getpid())
        self._open = threading.local()
        self._whole_process = ""  # a worker's threads are all on the way of its job
        self._known: set[tuple[str, str]] = set()

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        path = code.co_filename.removeprefix(f"{ROOT}/")
        if event not in ("call", "return") or path.startswith(("/", ".", "<")):
            return
        way = next((name for name in WAYS if self._begins(name, path, code.co_qualname)), "")
        if way:
            depth = getattr(self._open, way, 0) + (1 if event == "call" else -1)
            setattr(self._open, way, depth)
            if path == FILES["_run"]:
                self._whole_process = way if event == "call" else ""
        if event == "call" and code.co_flags & 3 == 3:  # a function; not a module or a class
            for name in WAYS:
                if getattr(self._open, name, 0) or name in (self._whole_process, way):
                    self._note(name, path)

    @staticmethod
    def _begins(way: str, path: str, name: str) -> bool:
        return name in WAYS[way] and FILES.get(name, path) == path

    def _note(self, way: str, path: str) -> None:
        if (way, path) not in self._known:
            self._known.add((way, path))
            with self._file.open("a") as file:
                file.write(f"{way} {path}\n")


def trace(notes: str) -> None:
    """Trace all threads of this process from now on."""
    tracer = Tracer(Path(notes))
    threading.setprofile(tracer)
    sys.setprofile(tracer)


def traced(folder: Path) -> Path:
    """The traced program, and beside it the folder `notes`."""
    (folder / "notes").mkdir()
    program = folder / "midslice"
    text = PROGRAM.format(python=sys.executable, root=ROOT, notes=folder / "notes")
    program.write_text(text)
    program.chmod(0o755)
    return program


def run(folder: Path) -> None:
    """Have one series made and sent, and a refused job requeued."""
    program = traced(folder)
    received = series.native(series.thick(8), folder / "received")
    single = phantoms.write(folder / "single", phantoms.Series(slices=1))
    with storescp(folder / "pacs") as pacs:
        target = destination("pacs", pacs.ae_title, pacs.port)
        site = NodeProcess(folder / "site", route(model="midslice"), target).folder
        config = site / "config.toml"
        node = NodeChild(config, program=program, bad_ends=())
        try:
            port = node.wait("node listening", SECONDS)["port"]
            assert storescu(port, *received).code == 0
            node.wait("delivery sent", SECONDS)
            assert storescu(port, *single).code == 0
            refused = node.wait("job refused", SECONDS)["job"]
            requeue = [program, "requeue", str(refused), "--config", config]
            subprocess.run(requeue, check=True, capture_output=True)
            node.wait("job refused", SECONDS, count=2)
        finally:
            node.child.stop()


def main() -> None:
    """Print the files of each way."""
    files: dict[str, set[str]] = {way: set() for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        run(Path(name))
        for notes in Path(name, "notes").iterdir():
            for line in notes.read_text().splitlines():
                way, path = line.split()
                if path.startswith(PACKAGES) and not path.startswith(NOT_COUNTED):
                    files[way].add(path)
    for way in WAYS:
        lines = [f"{way}: {len(files[way])} files", *sorted(files[way])]
        sys.stdout.write("\n  ".join(lines) + "\n")


if __name__ == "__main__":
    main()

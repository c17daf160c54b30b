"""A whole site for the pages to show: a node, an archive, users, and series of every fate."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom.dataset import Dataset

from node.web.access import hash_password
from storage.database import Database
from storage.queries import find
from storage.records import JobState, Role
from storage.site import people
from tests import phantoms, series
from tests.node_process import NodeProcess, destination, running, wait_for
from tests.peers import Storescp, dcmsend, storescp, storescu
from tests.ports import free_port

MODEL_SECONDS = 180.0  # to load its weights and to run on a busy machine
PASSWORD = "correct horse battery"
PEOPLE = {
    "ada": Role.ADMINISTRATOR,
    "otto": Role.OPERATOR,
    "vera": Role.VIEWER,
    "lena": Role.VIEWER,
}
# What a peer may write into any text: none of it may ever run in a page.
SCRIPT = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
NAME = '"><script>alert(2)</script>'  # of a person: = and ^ would part it

ROUTES = """
[[route]]
name = "thick-ct"
match = { Modality = "CT", gap_mm = { min = 2.0 } }
model = "linear"
factor = 4
priority = 5
destinations = ["archive"]

[[route]]
name = "leaves-gaps"
calling_ae_title = "LEAVES"
match = { Modality = "CT" }
model = "linear"
factor = 4
across_missing = "leave"
destinations = []

[[route]]
name = "shadow"
match = { Modality = "CT", StudyDescription = { regex = "Shadow" } }
model = "linear"
factor = 2
destinations = []

[[route]]
name = "mr-brain"
calling_ae_title = "HEADS"
match = { Modality = "MR" }
model = "brain"
destinations = ["archive"]

[[route]]
name = "head-scores"
calling_ae_title = "HEADS"
match = { Modality = "CT", body_part = "head" }
model = "haemorrhage"
destinations = ["archive"]

[[route]]
name = "chest-findings"
calling_ae_title = "CHESTS"
match = { Modality = "CT" }
model = "balls"
destinations = ["archive"]

[[model]]
name = "balls"
class = "tests.chest_findings:Balls"
produces = "findings"
"""
PHANTOM = phantoms.Series(slices=8, rows=96, columns=96, pixel_mm=(3.6, 3.6))


@dataclass(frozen=True)
class Site:
    """A running node with its peers."""

    node: NodeProcess
    archive: Storescp
    database: Database

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.node.web_port}"

    def send_real(self, slices: int = 12) -> str:
        """A chest CT; its Series UID."""
        assert storescu(self.node.port, *series.thick(slices), options=("-xt",)).code == 0
        return series.SERIES_UID

    def send(self, made: phantoms.Series, *, calling: str = "CT_ROOM_2") -> str:
        """A made series by DCMTK; its Series UID."""
        files = phantoms.write(self.node.folder / "sent" / made.seed, made)
        assert dcmsend(self.node.port, *files, calling=calling).code == 0
        return phantoms.uid(made.seed, "series", made.number)

    def send_files(self, files: Sequence[Path], *, calling: str) -> None:
        """A series that lies on the disk, as it is."""
        assert dcmsend(self.node.port, *files, calling=calling).code == 0

    def job_by(self, model: str) -> int:
        """The id of the job that a model has done."""

        def done() -> int | None:
            jobs = find.jobs(self.database, find.Wanted(states=(JobState.SUCCEEDED,))).lines
            return next((job.id for job in jobs if job.model == model), None)

        return wait_for(f"a job of {model}", done, MODEL_SECONDS)

    def wait_for_models(self) -> None:
        """Wait for the jobs of the models, which take seconds: another job waits behind them."""
        for model in ("brain", "haemorrhage", "balls"):
            self.job_by(model)

    def job_of(self, series_uid: str, *, state: str = "", seconds: float = 60.0) -> int:
        """The id of the job of a series, once it is there in that state."""

        def found() -> int | None:
            jobs = find.jobs(self.database, find.Wanted(uid=series_uid)).lines
            return next((job.id for job in jobs if state in ("", job.state)), None)

        return wait_for(f"a job of {series_uid} {state}", found, seconds)


def with_holes(seed: str) -> phantoms.Series:
    """Two slices are missing: its job is held."""
    return replace(PHANTOM, seed=seed, slices=10, missing=(4, 5), description="Thorax with a hole")


def hostile(seed: str) -> phantoms.Series:
    """A script in every text that a page might show."""

    def write(made: Dataset, _index: int) -> None:
        made.AccessionNumber = SCRIPT[:16]
        made.StudyDescription = SCRIPT
        made.ProtocolName = SCRIPT
        made.ConvolutionKernel = "<b onclick=x>"
        made.StationName = "<i>x</i>"
        made.InstitutionName = SCRIPT

    patient = phantoms.Patient(name=NAME, id=SCRIPT)
    words = {"patient": patient, "description": SCRIPT, "edit": write}
    return replace(PHANTOM, seed=seed, slices=4, **words)  # type: ignore[arg-type]


@contextlib.contextmanager
def site(folder: Path, *, quiet_seconds: float = 1.0) -> Iterator[Site]:
    """The node, the archive that answers, and one more destination that does not."""
    with storescp(folder / "archive") as archive:
        node = NodeProcess(
            folder / "node",
            destination("archive", "STORESCP", archive.port),
            destination("clinic", "CLINIC", free_port()),
            ROUTES,
            quiet_seconds=quiet_seconds,
        )
        with running(node):
            database = Database.for_folder(node.folder / "var")
            for name, role in PEOPLE.items():
                people.add_user(database, time.time(), "test", name, role, hash_password(PASSWORD))
            yield Site(node, archive, database)
            database.close()

"""A series that no route took is processed all the same; and the first minutes with a new node."""

import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from node.config import load
from tests import node_rows, phantoms
from tests.node_process import MIDSLICE, NodeProcess, destination, running, wait_for
from tests.peers import Storescp, storescp, storescu

ROUTES = """
[[route]]
name = "thick"
match = { Modality = "CT", gap_mm = { min = 20.0 } }
model = "linear"
factor = 2
destinations = ["pacs"]
"""


@dataclass
class Site:
    """A node whose route takes none of the series that are sent, and its PACS."""

    node: NodeProcess
    pacs: Storescp
    folder: Path

    def send(self, name: str) -> str:
        """Send a made series of five slices, 5 mm apart, and wait until it is complete; its UID."""
        made = phantoms.Series(seed=name, study=name, slices=5)
        files = phantoms.write(self.folder / name, made)
        assert storescu(self.node.port, *files).code == 0
        series_uid = str(phantoms.dataset(made, 0).SeriesInstanceUID)
        self.node.event("series complete", series_uid=series_uid)
        assert node_rows.jobs(self.node, series_uid) == []
        return series_uid

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [MIDSLICE, *arguments, "--config", self.node.folder / "config.toml"],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def wait_for_result(self, series_uid: str) -> None:
        """Until nine slices of it, five received and four generated, are at the PACS."""
        node_rows.wait_until_settled(self.node, [series_uid])
        (job,) = node_rows.jobs(self.node, series_uid)
        assert (job.state, job.route) == ("succeeded", "thick")
        (delivery,) = node_rows.deliveries(self.node, series_uid)
        assert (delivery.state, delivery.destination) == ("sent", "pacs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("process-now")
    with storescp(folder / "pacs") as pacs:
        node = NodeProcess(folder / "node", ROUTES, destination("pacs", "STORESCP", pacs.port))
        with running(node):
            yield Site(node, pacs, folder)


def test_a_person_processes_it_at_the_command_line(site: Site) -> None:
    series_uid = site.send("by command")
    (shown,) = site.node.cli("series", series_uid)
    assert "thick: gap_mm is 5, but must be at least 20." in shown["why"]
    assert site.command("process-now", series_uid).returncode == 1  # nothing of it is arriving
    done = site.command("process-now", series_uid, "--route", "thick")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"Job \d+ is queued\. The series does not meet what the route asks for: gap_mm\.\n",
        done.stdout,
    )
    site.wait_for_result(series_uid)
    assert len(site.pacs.files()) == 10  # nine slices and a presentation state
    again = site.command("process-now", series_uid, "--route", "thick")
    assert "has succeeded already; redeliver it" in again.stdout
    unknown = site.command("process-now", series_uid, "--route", "nowhere")
    assert (unknown.returncode, unknown.stderr) == (
        2,
        "unknown route 'nowhere'; there are: thick\n",
    )


def test_a_program_processes_it_by_rest(site: Site) -> None:
    series_uid = site.send("by rest")
    api = f"http://127.0.0.1:{site.node.web_port}/api/v1"
    program = httpx.Client(headers=site.node.proof)
    asked = program.post(f"{api}/series/{series_uid}/process-now", json={"route": "thick"})
    assert asked.status_code == 202, asked.text
    wish = f"{api}/wishes/{asked.json()['wish']}"
    wait_for("an answer", lambda: program.get(wish).json()["state"] == "done")
    assert "is queued" in program.get(wish).json()["sentence"]
    program.close()
    site.wait_for_result(series_uid)


def test_a_newcomer_reads_on_the_terminal_where_the_pages_are(tmp_path: Path) -> None:
    subprocess.run([MIDSLICE, "init"], cwd=tmp_path, check=True, capture_output=True)
    config = tmp_path / "config.toml"
    text = re.sub(r"^port = (11112|8080)", "port = 0", config.read_text(), flags=re.MULTILINE)
    config.write_text(text.replace("min_free_gb = 5.0", "min_free_gb = 0.1"))
    assert load(config).node.port == 0
    ours, theirs = pty.openpty()
    node = subprocess.Popen([MIDSLICE, "serve"], cwd=tmp_path, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        shown = ""
        while "Ctrl-C stops the node" not in shown:  # ends: a node that dies closes its terminal
            shown += os.read(ours, 65536).decode()
        pages = re.search(r"Pages: +(http://127\.0\.0\.1:\d+/)", shown)
        assert pages is not None, shown
        link = re.search(r"First: +(http://\S+)", shown)
        assert link is not None and link[1].startswith(pages[1]), shown
        assert "Make the first administrator" in httpx.get(link[1], timeout=60.0).text
        port = re.search(r"DICOM: +AE title MIDSLICE, host \S+, port (\d+)", shown)
        assert port is not None, shown
        assert port[1] not in ("0", "11112")
        assert "alembic" not in shown
        node.send_signal(signal.SIGINT)
        assert node.wait(60) == 0
    finally:
        node.kill()
        node.wait()
        os.close(ours)

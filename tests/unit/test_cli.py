"""The command line: what each command says to a person, to a script, and as its exit status."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node import cli
from node.commands import terminal
from node.commands.store import opened
from storage.archive import Archive
from storage.files import Files
from storage.jobs import Queue
from storage.records import DerivedInstance, Job, NewDerived, NewJob, Peer, Received
from tests import peers, phantoms
from tests.node_scp import HOST

ROOT = Path(__file__).parents[2]
SERIES_UID = "1.2.840.99.3"
DERIVED_UID = "2.25.4711"


@dataclass(frozen=True)
class Said:
    """What a command left: status, standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def midslice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """Run a command in a folder with a configuration of its own."""
    monkeypatch.chdir(tmp_path)
    configure(tmp_path)

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        status = cli.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return run


def configure(folder: Path, *, port: int = 1) -> Path:
    path = folder / "config.toml"
    path.write_text(
        '[node]\nport = 0\ntimezone = "Europe/Berlin"\n[web]\nport = 0\n'
        "[storage]\nmin_free_gb = 0.0\n"
        f'[[destination]]\nname = "pacs"\nae_title = "STORESCP"\nhost = "{HOST}"\nport = {port}\n'
        '[[destination]]\nname = "other"\nae_title = "OTHER"\nhost = "127.0.0.1"\nport = 1\n'
        '[[route]]\nname = "thick"\nmodel = "linear"\nfactor = 2\ndestinations = ["pacs"]\n'
    )
    return path


def queued(folder: Path) -> int:
    """One received instance, its complete arrival, and a job for it."""
    with opened(folder / "config.toml") as store:
        return _queue_one(store.archive, store.queue, store.files)


def _queue_one(archive: Archive, queue: Queue, files: Files) -> int:
    incoming = files.incoming / "one"
    incoming.write_bytes(b"\0" * 128 + b"DICM" + b"data set")
    received = Received("1.2.840.99.2", SERIES_UID, "1.2.3", "1.2.4", "1.2.5", modality="CT")
    kept = archive.keep(received, Peer("CT1", "MIDSLICE"), incoming)
    (arrival,) = archive.arriving()
    new = NewJob(
        kind="infer",
        key="k",
        series_id=arrival.series_id,
        arrival_id=arrival.id,
        stack="[axial]",
        route="thick",
        model="linear",
        parameters={"factor": 2},
        destinations=("pacs",),
        priority=5,
        instances=(kept.instance_id,),
    )
    (job,) = queue.complete(arrival.id, {"rule": "quiet"}, [new])
    return job.job_id


def claimed(folder: Path, finish: Callable[[Queue, Job], object]) -> int:
    """A job that a worker took, and what it did with it."""
    job_id = queued(folder)
    with opened(folder / "config.toml") as store:
        queue = Queue(store.database, time.time, node="n", lease_seconds=60.0)
        job = queue.claim("worker-1", ["infer"])
        assert job is not None
        finish(queue, job)
    return job_id


def succeed(queue: Queue, job: Job) -> None:
    made = DerivedInstance("2.25.1", "1.2.4", "00001.dcm", "d" * 64, generated=True)
    queue.succeed(job, NewDerived(DERIVED_UID, "derived/1-1", 1, "1.0.0", (made,)))


def test_help_is_quick_and_lists_every_fixed_command() -> None:
    began = time.monotonic()
    helped = _process("--help")
    assert time.monotonic() - began < 3.0  # alone it takes 0.3 s; machines that test are busy
    for command in (
        *("serve", "check", "echo", "send", "process", "jobs", "job", "series", "requeue"),
        *("cancel", "redeliver", "models", "conformance", "reindex", "demo", "train", "evaluate"),
    ):
        assert f"│ {command} " in helped.stdout


def test_help_loads_none_of_what_commands_need() -> None:
    code = (
        "import sys; from node import cli; cli.run(['--help']);"
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('torch', 'numpy', 'pydicom', 'pynetdicom', 'sqlalchemy', 'fastapi')])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert ended.stdout.splitlines()[-1] == "[]"


def test_the_parent_of_serve_never_imports_torch() -> None:
    code = "import sys, node.app; print('torch' in sys.modules, 'cv2' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert ended.stdout.strip() == "False False"


def _process(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from node.cli import main; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={"COLUMNS": "160"},
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("jobz",), "No such command 'jobz'"),
        (("job",), "midslice job: Missing argument 'ID'; see midslice job --help"),
        (("job", "x"), "Invalid value for 'ID'"),
        (("jobs", "--stat"), "No such option: --stat"),
        (("jobs", "--state", "done"), "--state done: one of queued, running, succeeded,"),
        (("jobs", "--config", "absent.toml"), "absent.toml: no such file; name one with --config"),
        (("echo", "nobody"), "unknown destination 'nobody'; there are: pacs, other"),
        (("send", "absent", "--to", "pacs"), "absent: no such file or folder"),
        (("process", ".", "--model", "x", "--out", "o"), "unknown model 'x'; there are: linear,"),
        (("process", ".", "--model", "linear", "--out", "."), ".: is not empty; name a new folder"),
        (
            ("process", ".", "--model", "linear", "--out", "o", "--factor", "11"),
            "Invalid value for '--factor'",
        ),
        (
            ("process", ".", "--model", "linear", "--out", "o", "--target-spacing", "nan"),
            "--target-spacing nan: a number above 0",
        ),
        (("evaluate", ".", "--factor", "2,x"), "--factor 2,x: whole numbers from 2 to 10, as 2,4"),
    ],
)
def test_wrong_use_is_one_line_on_standard_error_and_status_2(
    midslice: Callable[..., Said], arguments: tuple[str, ...], expected: str
) -> None:
    said = midslice(*arguments)
    assert said.status == 2
    assert expected in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_factor_and_target_spacing_exclude_each_other(midslice: Callable[..., Said]) -> None:
    said = midslice(
        *("process", ".", "--model", "linear", "--out", "o", "--factor", 2),
        *("--target-spacing", 1.0),
    )
    assert said.status == 2
    assert "--factor and --target-spacing exclude each other" in said.err


def test_each_mistake_of_the_configuration_is_a_line_and_nothing_starts(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text('[node]\nport = "x"\n[web]\nport = -1\n')
    for command in (("jobs",), ("check",), ("serve",), ("conformance",), ("models",)):
        said = midslice(*command)
        assert said.status == 2
        assert said.err.splitlines() == [
            'config.toml: node.port = "x": integer 0-65535',
            "config.toml: web.port = -1: integer 0-65535",
        ]
    assert not (tmp_path / "var").exists()


def test_a_new_node_has_no_jobs_and_no_series(midslice: Callable[..., Said]) -> None:
    assert midslice("jobs").out == "There are no jobs.\n"
    assert midslice("jobs", "--state", "held").out == "No job is held.\n"
    assert midslice("jobs", "--json").json == []
    assert midslice("series").out == "Nothing was received yet.\n"
    assert midslice("series", "--json").json == []


def test_a_job_in_json_is_as_it_is_fixed(midslice: Callable[..., Said], tmp_path: Path) -> None:
    job_id = claimed(tmp_path, succeed)
    (job,) = midslice("jobs", "--json").json
    assert list(job) == [
        *("id", "kind", "state", "reason", "sentence", "series_uid", "stack", "route"),
        *("derived_series_uid", "model", "version", "attempt", "queued_at", "started_at"),
        *("finished_at", "progress", "deliveries"),
    ]
    assert (job["id"], job["kind"], job["state"]) == (job_id, "infer", "succeeded")
    assert (job["series_uid"], job["derived_series_uid"]) == (SERIES_UID, DERIVED_UID)
    assert job["finished_at"][-6:] in {"+01:00", "+02:00"}
    assert job["deliveries"] == [
        {"destination": "pacs", "state": "queued", "sent": 0, "confirmed": 0, "total": 1}
    ]


def test_jobs_are_a_table_for_a_person(midslice: Callable[..., Said], tmp_path: Path) -> None:
    claimed(
        tmp_path, lambda queue, job: queue.hold(job, "MISSING_SLICES", "[2] slices are missing.")
    )
    said = midslice("jobs")
    assert said.status == 0
    header, row = said.out.splitlines()
    assert header.split() == [
        *("id", "state", "series", "route", "model", "queued", "took", "deliveries", "why")
    ]
    assert "held" in row
    assert " ago, " in row
    assert "[2] slices are missing." in row  # brackets of a sentence are no markup
    assert midslice("jobs", "--state", "queued").out == "No job is queued.\n"
    assert len(midslice("jobs", "--state", "held", "--json").json) == 1


def test_one_job_shows_attempts_instances_and_deliveries(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    job_id = claimed(tmp_path, succeed)
    shown = midslice("job", job_id, "--json").json
    assert [a["worker"] for a in shown["attempts"]] == ["worker-1"]
    assert [i["instance_uid"] for i in shown["instances"]] == ["1.2.3"]
    assert [d["destination"] for d in shown["deliveries"]] == ["pacs"]
    assert shown["parameters"] == {"factor": 2}
    text = midslice("job", job_id).out
    for word in (SERIES_UID, DERIVED_UID, "[axial]", "worker-1", "pacs", "0/1", "factor = 2"):
        assert word in text


def test_an_unknown_job_or_series_is_status_1_with_one_line(midslice: Callable[..., Said]) -> None:
    for command in (("job", 99), ("requeue", 99), ("cancel", 99), ("redeliver", 99)):
        said = midslice(*command)
        assert (said.status, said.out) == (1, "")
        assert len(said.err.splitlines()) == 1
        assert "99" in said.err
    assert midslice("series", "1.2.3.4").err == "no series 1.2.3.4 was received\n"


def test_series_shows_what_was_received_and_what_became_of_it(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    job_id = queued(tmp_path)
    (shown,) = midslice("series", "--json").json
    assert (shown["series_uid"], shown["modality"], shown["instances"]) == (SERIES_UID, "CT", 1)
    assert "complete" in shown["states"]
    assert SERIES_UID in midslice("series").out
    (one,) = midslice("series", SERIES_UID, "--json").json
    assert one["jobs"] == [job_id]
    assert f"job {job_id}" in midslice("series", SERIES_UID).out


def test_a_series_that_is_arriving_says_when_it_will_be_complete(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    with opened(tmp_path / "config.toml") as store:
        incoming = store.files.incoming / "one"
        incoming.write_bytes(b"x")
        received = Received("1.2", SERIES_UID, "1.2.3", "1.2.4", "1.2.5")
        store.archive.keep(received, Peer("CT1", "MIDSLICE"), incoming)
    assert "s if nothing more comes" in midslice("series").out


def test_a_person_cancels_and_requeues_a_job_and_both_are_recorded(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    job_id = queued(tmp_path)
    assert midslice("cancel", job_id).out == f"Job {job_id} is cancelled.\n"
    assert midslice("requeue", job_id, "--json").json["state"] == "queued"
    again = midslice("requeue", job_id)
    assert again.status == 1
    assert "queued" in again.err
    with opened(tmp_path / "config.toml") as store:
        events = [(event.what, event.which) for event in store.audit.list()]
    assert events == [("requeue", f"job {job_id}"), ("cancel", f"job {job_id}")]


def test_a_running_job_is_asked_to_stop(midslice: Callable[..., Said], tmp_path: Path) -> None:
    job_id = claimed(tmp_path, lambda queue, job: queue.renew(job, 0.5))
    assert midslice("cancel", job_id).out == f"Job {job_id} stops at its next step.\n"
    assert "running 50%, to be cancelled" in midslice("jobs").out


def test_a_result_is_delivered_again_to_all_or_to_one(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    job_id = claimed(tmp_path, succeed)
    assert midslice("redeliver", job_id).status == 0
    said = midslice("redeliver", job_id, "--to", "other", "--json")
    assert {d["destination"] for d in said.json["deliveries"]} == {"pacs", "other"}
    assert midslice("redeliver", job_id, "--to", "nobody").status == 2


def test_what_an_archive_without_rows_holds_is_indexed_again(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    queued(tmp_path)
    said = midslice("reindex", "--json")
    assert said.status == 0
    assert said.json["missing"] == []
    assert "were not in the index" in midslice("reindex").out


def test_echo_says_of_each_destination_whether_it_answers(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    with peers.storescp(tmp_path / "pacs") as pacs:
        configure(tmp_path, port=pacs.port)
        assert midslice("echo", "pacs").status == 0
        said = midslice("echo", "--json")
    assert said.status == 1
    assert [(each["destination"], each["ok"]) for each in said.json] == [
        ("pacs", True),
        ("other", False),
    ]


def test_send_stores_a_folder_and_skips_what_is_no_dicom(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    phantoms.write(tmp_path / "ct", phantoms.Series(slices=3))
    (tmp_path / "ct" / "notes.txt").write_text("no DICOM")
    with peers.storescp(tmp_path / "pacs") as pacs:
        configure(tmp_path, port=pacs.port)
        said = midslice("send", tmp_path / "ct", "--to", "pacs")
        assert said.status == 0
        assert "3 of 3 instances are stored at pacs." in said.out
        assert "skipped: 1 file: no Part 10" in said.out
        assert len(pacs.files()) == 3
        one = midslice("send", tmp_path / "ct" / "0000.dcm", "--to", "pacs", "--json").json
    assert (one["stored"], one["total"]) == (1, 1)
    assert one["instances"][0]["status"] == "0x0000"


def test_send_to_a_peer_that_is_not_there_is_status_1(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    phantoms.write(tmp_path / "ct", phantoms.Series(slices=2))
    said = midslice("send", tmp_path / "ct", "--to", "other", "--json")
    assert said.status == 1
    assert (said.json["stored"], said.json["total"]) == (0, 2)
    assert said.json["instances"][0]["status"] == "no answer"
    assert said.json["sentence"]


def test_process_makes_one_derived_series_a_stack(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    phantoms.write(tmp_path / "ct", phantoms.Series(slices=4))
    said = midslice(
        *("process", tmp_path / "ct", "--model", "linear", "--out", tmp_path / "out"),
        *("--factor", 2, "--json"),
    )
    assert said.status == 0
    (series,) = said.json["series"]
    assert (series["state"], series["instances"], series["generated"]) == ("succeeded", 7, 3)
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 7


def test_process_makes_the_same_series_as_the_node_each_time(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    phantoms.write(tmp_path / "ct", phantoms.Series(slices=3))
    found = [
        midslice("process", "ct", "--model", "linear", "--out", name, "--json").json["series"][0]
        for name in ("a", "b")
    ]
    assert found[0]["derived_series_uid"] == found[1]["derived_series_uid"]
    (tmp_path / "config.toml").unlink()
    alone = midslice("process", "ct", "--model", "linear", "--out", "c", "--json").json
    assert alone["series"][0]["derived_series_uid"] != found[0]["derived_series_uid"]


def test_process_puts_two_series_into_two_folders(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    phantoms.write(tmp_path / "ct" / "a", phantoms.Series(slices=3, seed="a"))
    phantoms.write(tmp_path / "ct" / "b", phantoms.Series(slices=3, seed="b"))
    said = midslice("process", "ct", "--model", "linear", "--out", "out")
    assert said.status == 0
    assert [len(list((tmp_path / "out" / n).glob("*.dcm"))) for n in ("1", "2")] == [5, 5]


def test_process_says_why_nothing_was_made_and_leaves_no_folder(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    phantoms.write(tmp_path / "ct", phantoms.Series(slices=3))
    arguments = ("process", "ct", "--model", "linear", "--out", "out", "--target-spacing", 20)
    said = midslice(*arguments)
    assert said.status == 1
    assert "refused: NOTHING_TO_DO: The slices lie 5.00 mm apart" in said.out
    assert not (tmp_path / "out").exists()
    (series,) = midslice(*arguments, "--json").json["series"]
    assert (series["state"], series["reason"]) == ("refused", "NOTHING_TO_DO")


def test_process_of_a_folder_without_dicom_says_so(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no DICOM")
    said = midslice("process", "empty", "--model", "linear", "--out", "out")
    assert said.status == 1
    assert "There is no DICOM series in this folder." in said.out
    assert "set aside: 1 file: PIXEL_DATA_ERROR" in said.out


def test_models_names_version_weights_and_input(midslice: Callable[..., Said]) -> None:
    found = {each["name"]: each for each in midslice("models", "--json").json["models"]}
    assert set(found) == {"linear", "midslice"}
    assert len(found["midslice"]["weights_sha256"]) == 64
    assert found["linear"]["weights_sha256"] == ""
    assert "CT stacks" in midslice("models").out


def test_a_model_of_the_site_that_cannot_be_loaded_is_named(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    with (tmp_path / "config.toml").open("a") as file:
        file.write('[[model]]\nname = "ours"\nclass = "absent_module:Net"\n')
    said = midslice("models")
    assert said.status == 1
    assert "absent_module:Net" in said.out


def test_check_prints_one_line_a_finding_and_fails_on_a_fault(
    midslice: Callable[..., Said],
) -> None:
    said = midslice("check")
    assert said.status == 1  # the destinations of the fixture are not there
    levels = [line.split()[0] for line in said.out.splitlines()]
    assert set(levels) <= {"ok", "warning", "fault"}
    assert levels.count("fault") == 2
    assert "fault   destination pacs: STORESCP at 127.0.0.1:1 refuses" in said.out
    found = midslice("check", "--json").json
    assert found["ok"] is False
    assert [each["level"] for each in found["findings"]] == levels


def test_conformance_prints_the_statement_of_this_configuration(
    midslice: Callable[..., Said],
) -> None:
    said = midslice("conformance")
    assert said.status == 0
    assert said.out.startswith("# DICOM conformance statement of Midslice\n")
    assert "| `thick` | `MIDSLICE` | any | everything | `linear` | factor 2 | `pacs` |" in said.out


def test_evaluate_fails_on_a_missed_figure_where_it_is_asked_to(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    data = ROOT / "node" / "demo" / "data" / "acquired"
    page = tmp_path / "page.html"
    arguments = ("evaluate", data, "--factor", "2", "--targets", 1, "--model", "linear")
    arguments += ("--out", page)
    card = tmp_path / "made" / "card.md"
    said = midslice(*arguments, "--card", card)
    assert said.status == 0
    assert card.read_text().startswith("| cell | weights | DIS over linear |")
    assert "linear, smoothed" in said.out
    assert page.read_text().startswith("<!doctype html>")
    failed = midslice(*arguments, "--gates")
    assert failed.status == 1
    assert "chest: dB over DIS" in failed.out
    assert "Every figure is reached" not in failed.out
    told = midslice(*arguments, "--gates", "--json", "--no-page")
    assert told.status == 1
    missed = {row["title"] for row in told.json["gates"] if row["verdict"] == "missed"}
    assert "body MAE against linear" in missed


def test_the_targets_of_an_evaluation_can_be_kept_and_given(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    data = ROOT / "node" / "demo" / "data" / "acquired"
    kept = tmp_path / "targets.json"
    assert midslice("evaluate", data, "--draw-targets", kept).status == 0
    told = midslice(
        *("evaluate", data, "--factor", "10", "--model", "linear", "--target-list", kept),
        *("--json", "--no-page"),
    )
    (listed,) = [
        each
        for each in json.loads(kept.read_text())["series"]
        if (each["slices"], each["factor"]) == (23, 10)
    ]
    assert told.json["cells"][0]["targets"] == listed["targets"]
    kept.write_text("{}")
    said = midslice("evaluate", data, "--target-list", kept)
    assert said.status == 2
    assert "no list as --draw-targets writes it" in said.err


def test_a_folder_without_series_cannot_train(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    said = midslice("train", tmp_path / "empty")
    assert said.status == 1
    assert "no evenly spaced CT series" in said.err
    assert len(said.err.splitlines()) == 1


def test_a_folder_without_series_is_told_what_evaluation_needs(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    phantoms.write(tmp_path / "data" / "thick", phantoms.Series(slices=3))
    said = midslice("evaluate", tmp_path / "data")
    assert said.status == 1
    assert "no CT series to judge on; needed are thin axial slices" in said.err
    assert "thick: it has 3 slices; at least 5 are needed" in said.err
    assert len(said.err.splitlines()) == 1


def test_an_error_that_nobody_foresaw_shows_no_value(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "var").write_text("a file where a folder belongs")
    said = midslice("jobs")
    assert said.status == 1
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("midslice: FileExistsError at ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (0.4, "0.4 s"), (59.0, "59 s"), (61.0, "1 min"), (7200, "2 h"), (2e5, "2 d")],
)
def test_durations_read_as_a_person_says_them(seconds: float, text: str) -> None:
    assert terminal.duration(seconds) == text


def test_times_are_relative_and_exact() -> None:
    now = time.time()
    assert terminal.when(None, None) == ""
    assert terminal.when(now - 185, None).startswith("3 min ago, ")
    assert terminal.when(now + 90, None).startswith("in 1 min, ") or terminal.when(
        now + 90, None
    ).startswith("in 2 min, ")
    assert terminal.when(0.0, None).endswith("1970-01-01 00:00") or "1969" in terminal.when(
        0.0, None
    )


def test_sizes_read_as_a_person_says_them() -> None:
    assert [terminal.size(n) for n in (0, 999, 1500, 2.5e6, 3e12)] == [
        *("0 B", "999 B", "1.5 kB", "2.5 MB", "3.0 TB")
    ]

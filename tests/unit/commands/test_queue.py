"""Jobs and series at the command line: lists with their filters, one job, an operator's changes."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from node import cli
from node.commands.terminal import opened
from node.dicom.handlers import identify_file
from storage.records import Job
from tests import phantoms
from tests.node_process import MIDSLICE
from tests.unit.commands.console import Midslice, Result, configure, rows
from tests.unit.storage.stored import SCANNER, SERIES, Stored

DERIVED_UID = "2.25.4711"


def queued(folder: Path) -> int:
    """A job for a received series of one instance."""
    with rows(folder) as stored:
        changed = {"stack": "[axial]", "parameters": {"factor": 2}}
        return stored.ask("k", ["1.2.3"], **changed).job_id


def claimed(folder: Path, finish: Callable[[Stored, Job], object]) -> int:
    """A job that a worker took, and what it did with it."""
    job_id = queued(folder)
    with rows(folder) as stored:
        finish(stored, stored.claim("worker-1"))
    return job_id


def succeed(stored: Stored, job: Job) -> None:
    stored.queue.succeed(job, stored.derive(job, DERIVED_UID, 1))


def test_a_new_node_has_no_jobs_and_no_series(first_command: Midslice) -> None:
    assert first_command("jobs").out == "There are no jobs.\n"
    assert first_command("jobs", "--state", "held").out == "No job is held.\n"
    assert first_command("jobs", "--json").json == []
    assert first_command("series").out == "Nothing has been received yet.\n"
    assert first_command("series", "--json").json == []


def test_a_job_in_json_is_as_it_is_fixed(midslice: Midslice, tmp_path: Path) -> None:
    job_id = claimed(tmp_path, succeed)
    (job,) = midslice("jobs", "--json").json
    assert list(job) == [
        *("id", "kind", "state", "reason", "sentence", "series_uid", "stack", "route"),
        *("derived_series_uid", "model", "version", "attempt", "queued_at", "started_at"),
        *("finished_at", "progress", "deliveries", "confidence_counts"),
    ]
    assert (job["id"], job["kind"], job["state"]) == (job_id, "infer", "succeeded")
    assert (job["series_uid"], job["derived_series_uid"]) == (SERIES, DERIVED_UID)
    assert job["finished_at"][-6:] in {"+01:00", "+02:00"}
    assert job["deliveries"] == [
        {"destination": "pacs", "state": "queued", "sent": 0, "confirmed": 0, "total": 1}
    ]


def test_the_ledger_of_a_job_is_a_table_json_or_csv(midslice: Midslice, tmp_path: Path) -> None:
    job_id = str(claimed(tmp_path, succeed))
    (row,) = midslice("ledger", job_id, "--json").json
    assert (row["destination"], row["status"], row["confirmed"]) == ("pacs", None, False)
    header, line = midslice("ledger", job_id, "--csv").out.splitlines()
    assert header.split(",") == list(row)
    assert line.startswith(f"pacs,{row['instance_uid']},")
    assert row["instance_uid"] in midslice("ledger", job_id).out
    assert midslice("ledger", "99").status == 1


def test_jobs_are_a_table_for_a_person(midslice: Midslice, tmp_path: Path) -> None:
    claimed(
        tmp_path,
        lambda stored, job: stored.queue.hold(job, "MISSING_SLICES", "[2] slices are missing."),
    )
    result = midslice("jobs")
    assert result.status == 0
    header, row = result.out.splitlines()
    assert header.split() == [
        *("id", "state", "series", "route", "model", "queued", "took", "confidence"),
        *("deliveries", "why"),
    ]
    assert "held" in row
    assert " ago, " in row
    assert "[2] slices are missing." in row  # brackets of a sentence are no markup
    assert midslice("jobs", "--state", "queued").out == "No job is queued.\n"
    assert len(midslice("jobs", "--state", "held", "--json").json) == 1


def test_a_job_and_the_list_say_how_many_slices_are_sure(
    midslice: Midslice, tmp_path: Path
) -> None:
    counts = {"fair": 3, "large_anatomy_only": 0, "sure": 12, "unsure": 1}
    record = {"confidence_counts": counts, "undersampled": {"gaps": 1}}

    def finish(stored: Stored, job: Job) -> None:
        stored.queue.succeed(job, replace(stored.derive(job), record=record))

    job_id = claimed(tmp_path, finish)
    assert "12 sure, 3 fair, 1 unsure" in midslice("jobs").out
    assert "12 sure, 3 fair, 1 unsure" in midslice("job", str(job_id)).out
    assert midslice("jobs", "--json").json[0]["confidence_counts"] == counts
    shown = midslice("job", str(job_id), "--json").json
    assert (shown["confidence_counts"], shown["undersampled"]) == (counts, {"gaps": 1})


def test_one_job_shows_attempts_instances_and_deliveries(
    midslice: Midslice, tmp_path: Path
) -> None:
    job_id = claimed(tmp_path, succeed)
    shown = midslice("job", job_id, "--json").json
    assert [a["worker"] for a in shown["attempts"]] == ["worker-1"]
    assert [i["instance_uid"] for i in shown["instances"]] == ["1.2.3"]
    assert [d["destination"] for d in shown["deliveries"]] == ["pacs"]
    assert shown["parameters"] == {"factor": 2}
    text = midslice("job", job_id).out
    for word in (SERIES, DERIVED_UID, "[axial]", "worker-1", "pacs", "0/1", "factor = 2"):
        assert word in text


def test_one_job_names_what_was_set_aside_and_who_sent_it(
    midslice: Midslice, tmp_path: Path
) -> None:
    aside = {"instances": 1, "numbers": "99", "reason": "NOT_A_CT_SLICE", "why": "A localizer."}
    with rows(tmp_path) as stored:
        job_id = stored.ask("k", ["1.2.3"], record={"set_aside": [aside]}).job_id
    shown = midslice("job", str(job_id)).out
    assert "1 instance (image 99): A localizer." in shown
    assert "SCANNER" in shown


def test_an_unknown_job_or_series_is_status_1_with_one_line(midslice: Midslice) -> None:
    for command in (("job", 99), ("requeue", 99), ("cancel", 99), ("redeliver", 99)):
        result = midslice(*command)
        assert (result.status, result.out) == (1, "")
        assert len(result.err.splitlines()) == 1
        assert "99" in result.err
    assert midslice("series", "1.2.3.4").err == "no series 1.2.3.4 was received\n"


def test_series_shows_what_was_received_and_what_became_of_it(
    midslice: Midslice, tmp_path: Path
) -> None:
    job_id = queued(tmp_path)
    (shown,) = midslice("series", "--json").json
    assert (shown["series_uid"], shown["modality"], shown["instances"]) == (SERIES, "CT", 1)
    assert "complete" in shown["states"]
    assert SERIES in midslice("series").out
    (series,) = midslice("series", SERIES, "--json").json
    assert series["jobs"] == [job_id]
    shown = midslice("series", SERIES).out
    assert re.search(rf"^{job_id} +queued +ct-slices", shown, re.MULTILINE)
    assert re.search(r"^SCANNER +MIDSLICE +1 ", shown, re.MULTILINE)
    assert "no job" not in shown


def test_a_whole_series_has_its_stacks_and_why_nothing_was_made_of_it(
    midslice: Midslice, tmp_path: Path
) -> None:
    made = phantoms.Series(slices=4)
    with rows(tmp_path) as stored:
        for path in phantoms.write(tmp_path / "sent", made):
            received = identify_file(path)
            assert received is not None
            incoming = stored.files.incoming / path.name
            shutil.copy(path, incoming)
            stored.archive.keep(received, SCANNER, incoming)
        (arrival,) = stored.archive.arriving()
        against = [["ct-slices", "PatientName", "PatientName is Meyer, not Mueller."]]
        evidence = {"rule": "quiet", "quiet_seconds": 30.0, "objections": against}
        stored.queue.complete(arrival.id, evidence, [])
    shown = midslice("series", received.series_uid).out
    assert re.search(r"stack +slices\n.* 4 *\n", shown)
    assert "kept; no route asked for a job. ct-slices: Its condition on PatientName" in shown
    assert "No further instance came for 30.0 s" in shown
    assert "There are no jobs of it." in shown
    assert "Meyer" not in shown
    (document,) = midslice("series", received.series_uid, "--json").json
    assert [stack["slices"] for stack in document["stacks"]] == [4]
    assert document["why"].startswith("kept; no route asked for a job")
    assert [it["calling_ae"] for it in document["arrivals"]] == ["SCANNER"]
    assert len(document["versions"]) == 4
    assert "Meyer" not in str(document)


def test_a_series_that_is_arriving_says_when_it_will_be_complete(
    midslice: Midslice, tmp_path: Path
) -> None:
    with rows(tmp_path) as stored:
        stored.receive("1.2.3")
    assert "s if nothing more comes" in midslice("series").out
    assert "s if nothing more comes" in midslice("series", SERIES).out
    assert midslice("jobs").out.startswith(
        "There are no jobs. `midslice series` lists what was received.\n"
        "Arriving: series 1.2.3.4, 1 instance from SCANNER, complete in "
    )
    assert "Arriving" not in midslice("jobs", "--state", "held").out
    assert midslice("jobs", "--json").json == []


def test_a_person_cancels_and_requeues_a_job_and_both_are_recorded(
    midslice: Midslice, tmp_path: Path
) -> None:
    job_id = queued(tmp_path)
    assert midslice("cancel", job_id).out == f"Job {job_id} is cancelled.\n"
    assert midslice("requeue", job_id).out == f"Job {job_id} is queued again.\n"
    again = midslice("requeue", job_id)
    assert again.status == 1
    assert "is queued and cannot be requeued" in again.err
    assert midslice("cancel", job_id).status == 0
    assert midslice("requeue", job_id, "--json").json["state"] == "queued"
    with opened(tmp_path / "config.toml") as store:
        events = [(event.what, event.which) for event in store.audit.list()]
    for what in ("requeue", "cancel"):
        assert events.count((what, f"job {job_id}")) == 2


def test_a_running_job_is_asked_to_stop(midslice: Midslice, tmp_path: Path) -> None:
    job_id = claimed(tmp_path, lambda stored, job: stored.queue.renew(job, 0.5))
    assert midslice("cancel", job_id).out == f"Job {job_id} stops at its next step.\n"
    assert "running 50%, to be cancelled" in midslice("jobs").out


def test_a_result_is_delivered_again_to_all_or_to_one(midslice: Midslice, tmp_path: Path) -> None:
    job_id = claimed(tmp_path, succeed)
    assert midslice("redeliver", job_id).status == 0
    result = midslice("redeliver", job_id, "--to", "other", "--json")
    assert {d["destination"] for d in result.json["deliveries"]} == {"pacs", "other"}
    assert midslice("redeliver", job_id, "--to", "nobody").status == 2


def test_what_an_archive_without_rows_holds_is_indexed_again(
    midslice: Midslice, tmp_path: Path
) -> None:
    queued(tmp_path)
    result = midslice("reindex", "--json")
    assert result.status == 0
    assert result.json["missing"] == []
    assert "were not in the index" in midslice("reindex").out


def numbers(result: Result) -> list[int]:
    return [job["id"] for job in result.json]


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ((), [2, 1]),
        (("--state", "held"), [1]),
        (("--reason", "MISSING_SLICES"), [1]),
        (("--route", "second"), [2]),
        (("--sender", "SCANNER"), [2, 1]),
        (("--sender", "OTHER"), []),
        (("--uid", "1.2.3.4"), [2, 1]),
        (("--accession", "A1"), [2, 1]),
        (("--patient-id", "P2"), []),
        (("--until", "2001-01-01"), []),
        (("--limit", "1", "--offset", "1"), [1]),
    ],
)
def test_jobs_are_filtered(
    midslice: Midslice, tmp_path: Path, options: tuple[str, ...], ids: list[int]
) -> None:
    with rows(tmp_path) as stored:
        stored.ask("a", stack="a")
        stored.queue.hold(stored.claim(), "MISSING_SLICES", "Slices are missing.")
        stored.clock.now += 1
        stored.ask("b", stack="b", route="second")
    assert numbers(midslice("jobs", "--json", *options)) == ids


def test_series_are_filtered(midslice: Midslice, tmp_path: Path) -> None:
    with rows(tmp_path) as stored:
        stored.ask("a")
        stored.receive("9.1", series_uid="1.2.3.9")
    listed = midslice("series", "--json", "--state", "queued").json
    assert [series["series_uid"] for series in listed] == ["1.2.3.4"]
    assert midslice("series", "--json", "--sender", "OTHER").json == []


@pytest.mark.parametrize("options", [("--state", "lost"), ("--since", "yesterday")])
def test_a_filter_that_there_is_not_is_wrong_use(
    midslice: Midslice, options: tuple[str, ...]
) -> None:
    result = midslice("jobs", *options)
    assert result.status == 2
    assert result.err.startswith(" ".join(options))


@pytest.fixture
def completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., set[str]]:
    """What a shell offers for the last word, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("_MIDSLICE_COMPLETE", "complete_bash")

    def offered(*words: str) -> set[str]:
        monkeypatch.setenv("COMP_WORDS", " ".join(("midslice", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        capsys.readouterr()
        with pytest.raises(SystemExit):
            cli.run([])
        return set(capsys.readouterr().out.split())

    return offered


def test_a_shell_completes_commands_options_and_values(
    tmp_path: Path, completed: Callable[..., set[str]]
) -> None:
    configure(tmp_path)
    assert completed("jo") == {"job", "jobs"}
    assert completed("jobs", "--state", "he") == {"held"}
    assert completed("jobs", "--route", "c") == {"ct-slices"}
    assert completed("jobs", "--destination", "p") == {"pacs"}
    for words in (("pause",), ("echo",), ("send", "ct", "--to"), ("redeliver", "1", "--to")):
        assert completed(*words, "p") == {"pacs"}
    assert completed("user", "add", "anna", "--role", "o") == {"operator"}


def test_completion_without_a_configuration_offers_nothing_and_says_nothing(tmp_path: Path) -> None:
    words = {"COMP_WORDS": "midslice jobs --route c", "COMP_CWORD": "3"}
    done = subprocess.run(
        [MIDSLICE],
        cwd=tmp_path,
        env=os.environ | words | {"_MIDSLICE_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == ([], "")

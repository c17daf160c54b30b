"""Destinations and the node's own state: echo, send, check and the conformance statement."""

from pathlib import Path

from tests import peers, phantoms
from tests.unit.commands.said import Midslice, configure


def test_echo_says_of_each_destination_whether_it_answers(
    midslice: Midslice, tmp_path: Path
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
    midslice: Midslice, tmp_path: Path
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


def test_send_says_what_a_peer_answered_in_words(midslice: Midslice, tmp_path: Path) -> None:
    phantoms.write(tmp_path / "ct", phantoms.Series(slices=3))
    with peers.scripted_scp(peers.Script(statuses=[0x0000, 0x0124])) as port:
        configure(tmp_path, port=port)
        said = midslice("send", tmp_path / "ct", "--to", "pacs")
    assert said.status == 1
    assert "1 of them: 0x0124 (not authorised)." in said.out


def test_send_to_a_peer_that_is_not_there_is_status_1(midslice: Midslice, tmp_path: Path) -> None:
    phantoms.write(tmp_path / "ct", phantoms.Series(slices=2))
    said = midslice("send", tmp_path / "ct", "--to", "other", "--json")
    assert said.status == 1
    assert (said.json["stored"], said.json["total"]) == (0, 2)
    assert said.json["instances"][0]["status"] == "no answer"
    assert said.json["sentence"]


def test_check_prints_one_line_a_finding_and_fails_on_a_fault(
    midslice: Midslice,
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
    midslice: Midslice,
) -> None:
    said = midslice("conformance")
    assert said.status == 0
    assert said.out.startswith("# DICOM conformance statement of Midslice\n")
    assert (
        "| `ct-slices` | `MIDSLICE` | any | everything | `linear` | factor 2 | `pacs` |" in said.out
    )


def test_events_prints_the_table_of_the_log(midslice: Midslice) -> None:
    assert "job held" in midslice("events").out
    said = midslice("events", "--json")
    assert said.status == 0
    row = next(row for row in said.json["events"] if row["event"] == "delivery delayed")
    assert row == {
        "event": "delivery delayed",
        "level": "warning",
        "keys": ["destination", "delivery", "seconds"],
        "meaning": "tried again after `seconds`",
    }


def test_the_conformance_statement_is_a_page_whose_text_is_text(
    midslice: Midslice, tmp_path: Path
) -> None:
    match = "match = { StudyDescription = { regex = '<script>alert(1)</script>' } }"
    with (tmp_path / "config.toml").open("a") as file:
        file.write(f"{match}\n")
    said = midslice("conformance", "--html")
    assert said.status == 0
    assert said.out.startswith("<!doctype html>")
    assert "<table>" in said.out
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in said.out
    assert "<script" not in said.out
    assert "src=" not in said.out

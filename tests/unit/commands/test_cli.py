"""The command line as such: help, wrong use, errors; check, conformance, events."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.commands.console import Midslice

ROOT = Path(__file__).parents[3]


def test_help_is_quick_and_lists_every_fixed_command() -> None:
    began = time.monotonic()
    helped = _process("--help")
    assert time.monotonic() - began < 3.0  # alone it takes 0.3 s; machines that test are busy
    for command in (
        *("serve", "check", "echo", "send", "process", "jobs", "job", "series", "requeue"),
        *("cancel", "redeliver", "models", "conformance", "reindex", "demo", "train", "evaluate"),
    ):
        assert f"│ {command} " in helped.stdout


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


def test_neither_the_web_process_nor_the_parent_loads_what_it_never_uses() -> None:
    code = (
        "import sys, node.web.server; print(*sorted(sys.modules));"
        "import node.app; print(*sorted(sys.modules))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    web, parent = ({m.split(".")[0] for m in line.split()} for line in ended.stdout.splitlines())
    assert "fastapi" in web
    assert not web & {"torch", "cv2", "pynetdicom", "pydicom", "pylibjpeg", "openjpeg", "numpy"}
    assert not parent & {"torch", "cv2"}


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
    midslice: Midslice, arguments: tuple[str, ...], expected: str
) -> None:
    result = midslice(*arguments)
    assert result.status == 2
    assert expected in result.err
    assert len(result.err.splitlines()) == 1
    assert result.out == ""


def test_factor_and_target_spacing_exclude_each_other(midslice: Midslice) -> None:
    result = midslice(
        *("process", ".", "--model", "linear", "--out", "o", "--factor", 2),
        *("--target-spacing", 1.0),
    )
    assert result.status == 2
    assert "--factor and --target-spacing exclude each other" in result.err


def test_each_mistake_of_the_configuration_is_a_line_and_nothing_starts(
    first_command: Midslice, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text('[node]\nport = "x"\n[web]\nport = -1\n')
    for command in (("jobs",), ("check",), ("serve",), ("conformance",), ("models",)):
        result = first_command(*command)
        assert result.status == 2
        assert result.err.splitlines() == [
            'config.toml: node.port = "x": integer 0-65535',
            "config.toml: web.port = -1: integer 0-65535",
        ]
    assert not (tmp_path / "var").exists()


def test_an_error_that_nobody_foresaw_shows_no_value(
    first_command: Midslice, tmp_path: Path
) -> None:
    (tmp_path / "var").write_text("a file where a folder belongs")
    result = first_command("jobs")
    assert result.status == 1
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("midslice: FileExistsError at ")


def test_check_prints_one_line_a_finding_and_fails_on_a_fault(
    midslice: Midslice,
) -> None:
    result = midslice("check")
    assert result.status == 1  # the destinations of the fixture are not there
    levels = [line.split()[0] for line in result.out.splitlines()]
    assert set(levels) <= {"ok", "warning", "fault"}
    assert levels.count("fault") == 2
    assert "fault   destination pacs: STORESCP at 127.0.0.1:1 refuses" in result.out
    document = midslice("check", "--json").json
    assert document["ok"] is False
    assert [finding["level"] for finding in document["findings"]] == levels


def test_conformance_prints_the_statement_of_this_configuration(
    midslice: Midslice,
) -> None:
    result = midslice("conformance")
    assert result.status == 0
    assert result.out.startswith("# DICOM conformance statement of Midslice\n")
    assert (
        "| `ct-slices` | `MIDSLICE` | any | everything | `linear` | factor 2 | `pacs` |"
        in result.out
    )


def test_events_prints_the_table_of_the_log(midslice: Midslice) -> None:
    assert "job held" in midslice("events").out
    result = midslice("events", "--json")
    assert result.status == 0
    row = next(row for row in result.json["events"] if row["event"] == "delivery delayed")
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
    result = midslice("conformance", "--html")
    assert result.status == 0
    assert result.out.startswith("<!doctype html>")
    assert "<table>" in result.out
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in result.out
    assert "<script" not in result.out
    assert "src=" not in result.out

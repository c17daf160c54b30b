"""The command line as such: help, wrong use, a wrong configuration, and what nobody foresaw."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.commands.said import Midslice

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


def test_the_parent_of_serve_never_imports_torch() -> None:
    code = "import sys, node.app; print('torch' in sys.modules, 'cv2' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert ended.stdout.strip() == "False False"


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
    said = midslice(*arguments)
    assert said.status == 2
    assert expected in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_factor_and_target_spacing_exclude_each_other(midslice: Midslice) -> None:
    said = midslice(
        *("process", ".", "--model", "linear", "--out", "o", "--factor", 2),
        *("--target-spacing", 1.0),
    )
    assert said.status == 2
    assert "--factor and --target-spacing exclude each other" in said.err


def test_each_mistake_of_the_configuration_is_a_line_and_nothing_starts(
    midslice: Midslice, tmp_path: Path
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


def test_an_error_that_nobody_foresaw_shows_no_value(midslice: Midslice, tmp_path: Path) -> None:
    (tmp_path / "var").write_text("a file where a folder belongs")
    said = midslice("jobs")
    assert said.status == 1
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("midslice: FileExistsError at ")

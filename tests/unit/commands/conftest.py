"""The command line in this process, in a folder of its own."""

import io
import shutil
import sys
from pathlib import Path

import pytest

from node import cli
from storage.database import FILE_NAME
from tests.unit.commands.console import Midslice, Result, configure


@pytest.fixture
def first_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Midslice:
    """Run a command in a folder with a configuration alone; `typed` is its standard input."""
    monkeypatch.chdir(tmp_path)
    configure(tmp_path)

    def run(*arguments: object, typed: str = "") -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        capsys.readouterr()
        status = cli.run([str(argument) for argument in arguments])
        result = capsys.readouterr()
        return Result(status, result.out, result.err)

    return run


@pytest.fixture
def midslice(first_command: Midslice, tmp_path: Path, migrated_sqlite: Path) -> Midslice:
    """The same where a database exists: to migrate a new one takes longer than most commands."""
    (tmp_path / "var").mkdir(mode=0o700)
    database = tmp_path / "var" / FILE_NAME
    shutil.copyfile(migrated_sqlite, database)
    database.chmod(0o600)
    return first_command

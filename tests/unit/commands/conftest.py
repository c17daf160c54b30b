"""The command line in this process, in a folder of its own."""

import io
import sys
from pathlib import Path

import pytest

from node import cli
from tests.unit.commands.console import Midslice, Result, configure


@pytest.fixture
def midslice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Midslice:
    """Run a command in a folder with a configuration; `typed` is its standard input."""
    monkeypatch.chdir(tmp_path)
    configure(tmp_path)

    def run(*arguments: object, typed: str = "") -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        capsys.readouterr()
        status = cli.run([str(argument) for argument in arguments])
        result = capsys.readouterr()
        return Result(status, result.out, result.err)

    return run

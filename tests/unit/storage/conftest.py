"""Storage on both databases."""

from pathlib import Path

import pytest

from storage.database import Database
from storage.files import Files
from tests.conftest import Clock
from tests.unit.storage.stored import Stored


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "var", min_free_bytes=0)


@pytest.fixture
def stored(database: Database, files: Files, clock: Clock) -> Stored:
    return Stored(database, files, clock)

"""Fixtures of the node's work: a storage folder on SQLite, and a configuration."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.config import Config, defaults
from storage.database import Database
from storage.files import Files
from tests.conftest import Clock
from tests.unit.storage.stored import Stored


@pytest.fixture
def stored(sqlite: Database, tmp_path: Path, clock: Clock) -> Iterator[Stored]:
    yield Stored(sqlite, Files(tmp_path / "var", min_free_bytes=0), clock)


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    return defaults(tmp_path)

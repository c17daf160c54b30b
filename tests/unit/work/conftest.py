"""Fixtures of the node's work: a storage folder on SQLite, and a configuration."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.config import Config, defaults
from node.work import deliver, jobs
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


@pytest.fixture
def prompt_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of the node that see new work, or a changed lease, sooner than they need to."""
    monkeypatch.setattr(deliver, "IDLE_SECONDS", 0.02)
    monkeypatch.setattr(jobs, "IDLE_SECONDS", 0.02)
    monkeypatch.setattr(jobs, "RENEW_SECONDS", 0.1)

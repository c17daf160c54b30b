"""The peers that most tests of a whole node send to: one that takes all, and one that stalls."""

from collections.abc import Iterator

import pytest

from node.dicom.scu import Outgoing
from tests.peers import Script, Storescp, scripted_scp, storescp
from tests.sending import native


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storescp]:
    """A destination that keeps what it gets."""
    with storescp(tmp_path_factory.mktemp("archive")) as server:
        yield server


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storescp]:
    """Another one."""
    with storescp(tmp_path_factory.mktemp("second")) as server:
        yield server


@pytest.fixture
def empty_archive(archive: Storescp) -> Storescp:
    """The same without what earlier tests have sent."""
    for path in archive.files():
        path.unlink()
    return archive


@pytest.fixture(scope="module")
def stalling() -> Iterator[tuple[Script, int]]:
    """A destination that never answers the second instance that it gets."""
    script = Script(stall_at=2)
    with scripted_scp(script) as port:
        yield script, port


@pytest.fixture(scope="session")
def six_slices(tmp_path_factory: pytest.TempPathFactory) -> list[Outgoing]:
    """Six real CT slices, native, for the Storage SCU."""
    return native(tmp_path_factory.mktemp("native"))

"""The node's own SCP in this process, and slices to send to a peer in this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.dicom import scp
from node.dicom.scu import Outgoing
from tests.node_scp import Node, node_scp
from tests.sending import native


@pytest.fixture(autouse=True)
def prompt_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SCP that is told to end does so at once."""
    monkeypatch.setattr(scp, "POLL_SECONDS", 0.01)


@pytest.fixture(params=[True, False], ids=["direct", "library"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """The node's SCP, receiving by either way."""
    with node_scp(tmp_path, is_direct=request.param) as running:
        yield running


@pytest.fixture(scope="session")
def six_slices(tmp_path_factory: pytest.TempPathFactory) -> list[Outgoing]:
    """Six real CT slices, native, for the Storage SCU."""
    return native(tmp_path_factory.mktemp("native"))

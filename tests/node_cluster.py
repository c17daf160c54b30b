"""Several real nodes on one PostgreSQL database and one storage folder."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.node_process import NodeProcess, running

LOST_SECONDS = 4.0


def cluster_node(folder: Path, name: str, database: str, *parts: str) -> NodeProcess:
    """A node of that name on the storage in `folder`; it is not started."""
    (folder / "storage").mkdir(parents=True, exist_ok=True)
    (folder / name).mkdir()
    (folder / name / "var").symlink_to(folder / "storage")
    node = NodeProcess(folder / name, *parts, database=database)
    node.environment = {
        "MIDSLICE_NODE__NAME": name,
        "MIDSLICE_NODE__LOST_SECONDS": str(LOST_SECONDS),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    return node


@contextmanager
def cluster(
    folder: Path, database: str, *parts: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[NodeProcess, NodeProcess]]:
    """Two nodes that work on one storage, by the same configuration."""
    with ExitStack() as stack:
        one, two = (cluster_node(folder, name, database, *parts) for name in ("one", "two"))
        for node in (one, two):
            node.environment |= environment or {}
        yield stack.enter_context(running(one)), stack.enter_context(running(two))

"""How fast instances are received: DCMTK's storescp, Orthanc, the node."""

import contextlib
from collections.abc import Callable
from functools import partial

from tests.benchmarks import rig
from tests.benchmarks.rig import Receiver, Setting
from tests.benchmarks.table import Row, Subject

NAME = "ingest"
PARALLEL = 4
WARM_UP = 20

REFERENCES = {
    "storescp": "storescp",
    "Orthanc": "storescp",
    "Midslice": "storescp",
    "Midslice, sender with Nagle": "Midslice",
    f"storescp --fork, {PARALLEL} associations": f"storescp --fork, {PARALLEL} associations",
    f"Orthanc, {PARALLEL} associations": f"storescp --fork, {PARALLEL} associations",
    f"Midslice, {PARALLEL} associations": f"storescp --fork, {PARALLEL} associations",
}


def measure(setting: Setting) -> Subject:
    """Instances a second into each receiver, over one association and over four."""
    count = 60 if setting.is_quick else 300
    with contextlib.ExitStack() as stack:
        storescp = stack.enter_context(rig.storescp(setting.folder / "storescp"))
        forking = stack.enter_context(rig.storescp(setting.folder / "forking", "--fork"))
        orthanc = stack.enter_context(rig.orthanc(setting.folder / "orthanc"))
        node = stack.enter_context(rig.midslice(setting.folder / "node"))
        in_parallel = partial(rig.storescu, associations=PARALLEL)
        default = partial(rig.storescu, nodelay=False)

        def row(receiver: Receiver, sent: rig.Send = rig.storescu) -> Callable[[], float]:
            return partial(rig.received, receiver, setting, count, sent)

        rows = (
            row(storescp),
            row(orthanc),
            row(node),
            row(node, default),
            row(forking, in_parallel),
            row(orthanc, in_parallel),
            row(node, in_parallel),
        )
        for receiver in (storescp, forking, orthanc, node):
            rig.received(receiver, setting, WARM_UP, rig.storescu)
        values = setting.measure(dict(zip(REFERENCES, rows, strict=True)))
    return Subject(NAME, _caption(count), _rows(values))


def _rows(values: dict[str, list[float]]) -> tuple[Row, ...]:
    return tuple(
        Row(name, "inst/s", tuple(values[name]), reference)
        for name, reference in REFERENCES.items()
    )


def _caption(count: int) -> str:
    return (
        f"{count} native CT instances of 512 x 512 a pass, from storescu, TCP_NODELAY on both "
        "sides; storescp neither syncs nor indexes, Orthanc and Midslice do"
    )

"""How fast instances are received: DCMTK's storescp, Orthanc, the node; in memory and on disk."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks import rig
from tests.benchmarks.rig import Receiver, Setting
from tests.benchmarks.table import Bound, RatioBound, Row, Subject
from tests.raw_peer import RELEASE_RP, RawPeer, associate_request

NAME, ON_DISK, ASSOCIATION = "ingest", "ingest on disk", "association"
PARALLEL = (4, 8)
WARM_UP = 20
ASSOCIATIONS = 50  # a repetition; what one takes is their median

LONG, SHORT = "Midslice, one series", "Midslice, series of 10"
NAGLE = "Midslice, sender with Nagle"

BOUNDS = (
    RatioBound(NAME, "Midslice", at_least=0.9),
    *(RatioBound(NAME, f"Midslice, {count} associations", at_least=0.9) for count in PARALLEL),
    RatioBound(NAME, SHORT, at_least=0.85, at_most=1.18),
    RatioBound(ON_DISK, "Midslice", at_least=0.45),
    RatioBound(ON_DISK, "Midslice", at_least=2.5, to="Orthanc"),
    Bound(ASSOCIATION, "Midslice", below=3.0),
)

Rows = Mapping[str, tuple[Callable[[], float], str]]  # how a row is measured, and its reference


def measure(setting: Setting) -> Subject:
    """Instances a second into receivers that write to memory: what the processor allows."""
    count, most = _count(setting), len(setting.stock.files)
    with _in_memory() as folder, contextlib.ExitStack() as stack:
        storescp = stack.enter_context(rig.storescp(folder / "storescp"))
        forking = stack.enter_context(rig.storescp(folder / "forking", "--fork"))
        orthanc = stack.enter_context(rig.orthanc(folder / "orthanc"))
        node = stack.enter_context(rig.midslice(folder / "node"))
        _warm_up(setting, storescp, forking, orthanc, node)

        def row(receiver: Receiver, sent: rig.Send = rig.storescu) -> Callable[[], float]:
            return partial(rig.received, receiver, setting, count, sent)

        def all_in(series: int) -> Callable[[], float]:
            return partial(rig.received, node, setting, most, rig.storescu, series)

        rows: dict[str, tuple[Callable[[], float], str]] = {
            "storescp": (row(storescp), "storescp"),
            "Orthanc": (row(orthanc), "storescp"),
            "Midslice": (row(node), "storescp"),
            NAGLE: (row(node, partial(rig.storescu, nodelay=False)), "Midslice"),
            LONG: (all_in(1), LONG),
            SHORT: (all_in(most // 10), LONG),
        }
        for parallel in PARALLEL:
            sent = partial(rig.storescu, associations=parallel)
            reference = f"storescp --fork, {parallel} associations"
            rows[reference] = row(forking, sent), reference
            rows[f"Orthanc, {parallel} associations"] = row(orthanc, sent), reference
            rows[f"Midslice, {parallel} associations"] = row(node, sent), reference
        caption = (
            f"{_caption(count, 'in memory (tmpfs)')}; {most} in one series and in series of 10"
        )
        return Subject(NAME, caption, _measured(setting, rows))


def measure_on_disk(setting: Setting) -> Subject:
    """The same on the disk of the temporary folder, where syncs cost what they cost."""
    count = _count(setting)
    with contextlib.ExitStack() as stack:
        storescp = stack.enter_context(rig.storescp(setting.folder / "storescp"))
        orthanc = stack.enter_context(rig.orthanc(setting.folder / "orthanc"))
        node = stack.enter_context(rig.midslice(setting.folder / "node"))
        _warm_up(setting, storescp, orthanc, node)
        receivers = {"storescp": storescp, "Orthanc": orthanc, "Midslice": node}
        rows = {
            name: (partial(rig.received, receiver, setting, count, rig.storescu), "storescp")
            for name, receiver in receivers.items()
        }
        return Subject(ON_DISK, _caption(count, "on disk"), _measured(setting, rows))


def measure_association(setting: Setting) -> Subject:
    """How long an association and its release take, without an instance."""
    with _in_memory() as folder, contextlib.ExitStack() as stack:
        receivers = {
            "storescp": stack.enter_context(rig.storescp(folder / "storescp")),
            "Orthanc": stack.enter_context(rig.orthanc(folder / "orthanc")),
            "Midslice": stack.enter_context(rig.midslice(folder / "node")),
        }
        rows = {
            name: (partial(_associated, receiver), "storescp")
            for name, receiver in receivers.items()
        }
        for measured, _ in rows.values():
            measured()
        caption = f"connect, associate with one presentation context, release; {ASSOCIATIONS} each"
        return Subject(ASSOCIATION, caption, _measured(setting, rows, "ms"))


def _associated(receiver: Receiver) -> float:
    return statistics.median(_one_association(receiver) for _ in range(ASSOCIATIONS))


def _one_association(receiver: Receiver) -> float:
    request = associate_request(called=receiver.ae_title)
    began = time.perf_counter()
    with RawPeer(receiver.port) as peer:
        peer.associate(request)
        answer = peer.release()
    milliseconds = 1000 * (time.perf_counter() - began)
    assert answer == RELEASE_RP, f"{receiver.ae_title} did not release: {answer}"
    return milliseconds


@contextlib.contextmanager
def _in_memory() -> Iterator[Path]:
    with TemporaryDirectory(prefix="midslice-bench-", dir=rig.memory()) as name:
        yield Path(name)


def _count(setting: Setting) -> int:
    return 100 if setting.is_quick else 400


def _warm_up(setting: Setting, *receivers: Receiver) -> None:
    for receiver in receivers:
        rig.received(receiver, setting, WARM_UP, rig.storescu)


def _measured(setting: Setting, rows: Rows, unit: str = "inst/s") -> tuple[Row, ...]:
    values = setting.measure({name: measured for name, (measured, _) in rows.items()})
    return tuple(
        Row(name, unit, tuple(values[name]), reference) for name, (_, reference) in rows.items()
    )


def _caption(count: int, where: str) -> str:
    return (
        f"{count} native CT instances of 512 x 512 a pass, {where}, from storescu, TCP_NODELAY on "
        "both sides; storescp neither syncs nor indexes, Orthanc and Midslice do"
    )

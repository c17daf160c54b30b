"""How fast instances are sent: the node's sender beside DCMTK's storescu, to the same receivers."""

import contextlib
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from node.dicom import scu
from node.dicom.status import SUCCESS, Outcome
from tests.benchmarks import rig
from tests.benchmarks.rig import Receiver, Setting
from tests.benchmarks.table import Row, Subject

NAME = "delivery"
WARM_UP = 10

REFERENCES = {
    "storescu to storescp": "storescu to storescp",
    "Midslice to storescp": "storescu to storescp",
    "Midslice to storescp with Nagle": "storescu to storescp",
    "storescu to Orthanc": "storescu to Orthanc",
    "Midslice to Orthanc": "storescu to Orthanc",
}


def measure(setting: Setting) -> Subject:
    """Instances a second out of each sender."""
    count = 40 if setting.is_quick else 100
    ours = partial(_sent, setting)
    with contextlib.ExitStack() as stack:
        storescp = stack.enter_context(rig.storescp(setting.folder / "storescp"))
        default = stack.enter_context(rig.storescp(setting.folder / "default", nodelay=False))
        orthanc = stack.enter_context(rig.orthanc(setting.folder / "orthanc"))
        passes = (
            (storescp, rig.storescu),
            (storescp, ours),
            (default, ours),
            (orthanc, rig.storescu),
            (orthanc, ours),
        )
        for receiver in (storescp, default, orthanc):
            rig.received(receiver, setting, WARM_UP, ours)
        rows = [partial(rig.received, to, setting, count, sent) for to, sent in passes]
        values = setting.measure(dict(zip(REFERENCES, rows, strict=True)))
    caption = f"{count} native CT instances of 512 x 512 over one association"
    return Subject(
        NAME,
        caption,
        tuple(
            Row(name, "inst/s", tuple(values[name]), reference)
            for name, reference in REFERENCES.items()
        ),
    )


def _sent(setting: Setting, receiver: Receiver, files: Sequence[Path]) -> float:
    """The seconds that the node's sender takes, with its association."""
    peer = scu.PeerAddress(receiver.ae_title, "127.0.0.1", receiver.port, "MIDSLICE")
    outgoing = [
        scu.Outgoing(
            id=number,
            instance_uid=setting.stock.instance_uid(number),
            sop_class_uid=CTImageStorage,
            transfer_syntax=ExplicitVRLittleEndian,
            path=path,
        )
        for number, path in enumerate(files)
    ]
    statuses: list[int | None] = []
    began = time.perf_counter()
    sent = scu.send(
        peer,
        outgoing,
        answered=lambda _, status, _comment: statuses.append(status),
        stop=lambda: False,
    )
    seconds = time.perf_counter() - began
    assert sent.outcome is Outcome.STORED, sent.sentence
    assert statuses == [SUCCESS] * len(files), f"answers of {receiver.ae_title}: {set(statuses)}"
    return seconds

"""A scanner that sends one slice after the other, as it has reconstructed them."""

import time
from collections.abc import Sequence
from pathlib import Path

from pydicom import dcmread
from pynetdicom import AE

from tests.ports import HOST

TITLE = "SCANNER"


def scan(
    port: int, files: Sequence[Path], *, seconds: float = 0.2, called: str = "MIDSLICE"
) -> float:
    """Send a slice every so many seconds over one association; the time at which the last went."""
    slices = [dcmread(file) for file in files]
    scanner = AE(TITLE)
    for sop_class, syntax in {(it.SOPClassUID, it.file_meta.TransferSyntaxUID) for it in slices}:
        scanner.add_requested_context(sop_class, syntax)
    association = scanner.associate(HOST, port, ae_title=called)
    assert association.is_established, "the node does not take the association"
    due = time.monotonic()
    for slice_ in slices:
        time.sleep(max(0.0, due - time.monotonic()))
        due += seconds
        status = association.send_c_store(slice_)
        assert status and status.Status == 0x0000, f"a slice was answered {status}"
    last_at = time.time()
    association.release()
    return last_at

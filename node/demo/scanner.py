"""A scanner simulator: one association, every instance sent as it lies in its file."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pynetdicom import AE, _config
from pynetdicom.association import Association

AE_TITLE = "CT_SCANNER"
SUCCESS = 0x0000
NETWORK_SECONDS = 60.0
# From a path, the bytes of the data set go out as they are, never decoded or encoded again.
_config.STORE_SEND_CHUNKED_DATASET = True


class ScannerError(Exception):
    """The series could not be sent; the text says what the peer answered."""


@dataclass(frozen=True)
class Peer:
    """Where the scanner sends to."""

    ae_title: str
    port: int
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class Sent:
    """What was sent."""

    instances: int
    bytes: int
    seconds: float


def send(paths: Sequence[Path], peer: Peer, sent: Callable[[int], None]) -> Sent:
    """Send every file over one association; `sent` hears how many are stored so far."""
    began = time.monotonic()
    association = _associate(paths, peer)
    try:
        for number, path in enumerate(paths, start=1):
            status = association.send_c_store(path, msg_id=number)
            answer = status.get("Status")
            if answer is None:
                raise ScannerError(f"{peer.ae_title} gave no answer to slice {number}")
            if answer != SUCCESS:
                association.release()
                raise ScannerError(f"{peer.ae_title} did not store slice {number}: {answer:04X}")
            sent(number)
        association.release()
    finally:
        if association.is_established:
            association.abort()
    size = sum(path.stat().st_size for path in paths)
    return Sent(len(paths), size, time.monotonic() - began)


def _associate(paths: Sequence[Path], peer: Peer) -> Association:
    entity = AE(AE_TITLE)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = NETWORK_SECONDS
    for path in paths:
        header = dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True)
        entity.add_requested_context(header.SOPClassUID, header.file_meta.TransferSyntaxUID)
    association = entity.associate(peer.host, peer.port, ae_title=peer.ae_title)
    if association.rejected_contexts:
        association.abort()
        raise ScannerError(f"{peer.ae_title} takes no images as the scanner encodes them")
    if not association.is_established:
        raise ScannerError(f"{peer.ae_title} on port {peer.port} took no association")
    return association

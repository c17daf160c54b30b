"""An association of the node that is not connected to anything: fragments go in, files come out."""

import struct
from pathlib import Path

from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext, build_context

from node.dicom.upper_layer import Receiver
from tests.raw_peer import CT, EXPLICIT

COMMAND, LAST = 1, 2


def accepted(sop_class: str = CT, transfer_syntax: str = EXPLICIT) -> PresentationContext:
    """A presentation context as an acceptor has it once it is accepted."""
    context = build_context(UID(sop_class), UID(transfer_syntax))
    context.context_id = 1
    return context


def association(*contexts: PresentationContext) -> Association:
    """An association that accepted these contexts, with the ids 1, 3, 5 and so on."""
    made = Association(AE("MIDSLICE"), "acceptor")
    made._accepted_cx = {
        2 * index + 1: context for index, context in enumerate(contexts or (accepted(),))
    }
    return made


def receiver(folder: Path, *contexts: PresentationContext, min_free_bytes: int = 0) -> Receiver:
    """The DIMSE provider of such an association, which writes to this folder."""
    return Receiver(association(*contexts), folder, min_free_bytes=min_free_bytes)


def fragment(
    data: bytes, *, command: bool = False, last: bool = True, context_id: int = 1
) -> P_DATA:
    """A P-DATA indication with one fragment."""
    control = (COMMAND if command else 0) | (LAST if last else 0)
    indication = P_DATA()
    indication.presentation_data_value_list = [[context_id, struct.pack(">B", control) + data]]
    return indication

"""The presentation contexts of the node, and which transfer syntax it prefers."""

import pytest
from pydicom import uid
from pynetdicom import ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts
from pynetdicom.presentation import build_context, negotiate_as_acceptor

from node.dicom.contexts import (
    LOSSLESS,
    LOSSY,
    STORAGE_SOP_CLASSES,
    TRANSFER_SYNTAXES,
    VIDEO,
    accepted_contexts,
)

CT = "1.2.840.10008.5.1.4.1.1.2"


def test_every_standard_storage_class_and_verification_are_accepted() -> None:
    accepted = {context.abstract_syntax for context in accepted_contexts()}
    standard = {context.abstract_syntax for context in AllStoragePresentationContexts}
    assert accepted == standard | {"1.2.840.10008.1.1"}
    assert len(STORAGE_SOP_CLASSES) == len(standard)


def test_lossless_is_preferred_to_lossy_and_big_endian_is_the_last() -> None:
    places = [TRANSFER_SYNTAXES.index(group[0]) for group in (LOSSLESS, LOSSY, VIDEO)]
    assert places == sorted(places)
    assert TRANSFER_SYNTAXES[0] == uid.ExplicitVRLittleEndian
    assert TRANSFER_SYNTAXES[-1] == uid.ExplicitVRBigEndian


def test_all_standard_transfer_syntaxes_are_taken_but_those_without_pixels() -> None:
    left_out = set(ALL_TRANSFER_SYNTAXES) - {str(one) for one in TRANSFER_SYNTAXES}
    assert {uid.UID(one).name.split()[0] for one in left_out} == {"JPIP", "SMPTE"}
    assert len(set(TRANSFER_SYNTAXES)) == len(TRANSFER_SYNTAXES)


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        ([uid.JPEGBaseline8Bit, uid.JPEGLSLossless], uid.JPEGLSLossless),
        (
            [uid.JPEG2000, uid.JPEG2000Lossless, uid.ImplicitVRLittleEndian],
            uid.UID("1.2.840.10008.1.2"),
        ),
        ([uid.ExplicitVRBigEndian, uid.RLELossless], uid.RLELossless),
        ([uid.JPEGBaseline8Bit], uid.JPEGBaseline8Bit),
    ],
)
def test_lossy_is_taken_only_where_the_peer_offers_nothing_else(
    offered: list[uid.UID], taken: uid.UID
) -> None:
    asked = build_context(CT, [*offered])
    asked.context_id = 1
    contexts, _ = negotiate_as_acceptor([asked], accepted_contexts())
    assert contexts[0].result == 0
    assert contexts[0].transfer_syntax == [taken]

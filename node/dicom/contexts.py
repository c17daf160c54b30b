"""Presentation contexts: SOP Classes, transfer syntaxes in order of preference, the node's name."""

from collections.abc import Iterable, Mapping

from pydicom import uid
from pynetdicom import AllStoragePresentationContexts
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    Verification,
)

MAX_PDU_BYTES = 131072
MAX_CONTEXTS = 128  # ids are the odd numbers from 1 to 255: PS3.8 9.3.2.2

UNCOMPRESSED = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)
LOSSLESS = (
    uid.DeflatedExplicitVRLittleEndian,
    uid.JPEGLosslessSV1,
    uid.JPEGLossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.RLELossless,
    uid.JPEG2000MCLossless,
    uid.UID("1.2.840.10008.1.2.4.110"),  # JPEG XL Lossless
    uid.UID("1.2.840.10008.1.2.8.1"),  # Deflated Image Frame Compression
)
LOSSY = (
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLSNearLossless,
    uid.JPEG2000,
    uid.HTJ2K,
    uid.JPEG2000MC,
    uid.UID("1.2.840.10008.1.2.4.111"),  # JPEG XL JPEG Recompression
    uid.UID("1.2.840.10008.1.2.4.112"),  # JPEG XL
)
VIDEO = (
    uid.MPEG2MPML,
    uid.MPEG2MPMLF,
    uid.MPEG2MPHL,
    uid.MPEG2MPHLF,
    uid.MPEG4HP41,
    uid.MPEG4HP41F,
    uid.MPEG4HP41BD,
    uid.MPEG4HP41BDF,
    uid.MPEG4HP422D,
    uid.MPEG4HP422DF,
    uid.MPEG4HP423D,
    uid.MPEG4HP423DF,
    uid.MPEG4HP42STEREO,
    uid.MPEG4HP42STEREOF,
    uid.HEVCMP51,
    uid.HEVCM10P51,
)
RETIRED = (uid.ExplicitVRBigEndian,)

# The acceptor takes the first of its own list that the peer offers. JPIP Referenced is never
# taken (its pixels are a URL), nor SMPTE (its pixels are a stream beside DICOM).
TRANSFER_SYNTAXES = UNCOMPRESSED + LOSSLESS + LOSSY + VIDEO + RETIRED

# Transfer syntaxes of CT pixels that need a decoder (PS3.5 8.2), and what provides it.
DECODER_PACKAGES: Mapping[uid.UID, str] = {
    uid.RLELossless: "pylibjpeg-rle",
    uid.JPEGBaseline8Bit: "imagecodecs",
    uid.JPEGExtended12Bit: "imagecodecs",
    uid.JPEGLossless: "imagecodecs",
    uid.JPEGLosslessSV1: "imagecodecs",
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.JPEG2000Lossless: "imagecodecs",
    uid.JPEG2000: "imagecodecs",
    uid.HTJ2KLossless: "pylibjpeg-openjpeg",
    uid.HTJ2KLosslessRPCL: "pylibjpeg-openjpeg",
    uid.HTJ2K: "pylibjpeg-openjpeg",
}

NOT_STORED = frozenset({str(Verification), str(StorageCommitmentPushModel)})
STORAGE_SOP_CLASSES = tuple(
    sorted({str(context.abstract_syntax) for context in AllStoragePresentationContexts})
)


def accepted_contexts() -> list[PresentationContext]:
    """The contexts that the SCP accepts: Verification and every standard Storage SOP Class."""
    syntaxes: list[str | uid.UID] = [*TRANSFER_SYNTAXES]
    verification = build_context(Verification, [*UNCOMPRESSED])
    return [verification] + [
        build_context(sop_class, syntaxes) for sop_class in STORAGE_SOP_CLASSES
    ]


def commitment_context(*, asks: bool, reports: bool) -> PresentationContext:
    """The context of storage commitment for a peer that may ask, report, or both."""
    context = build_context(StorageCommitmentPushModel, [*UNCOMPRESSED])
    context.scu_role, context.scp_role = asks, reports
    return context


def proposed_contexts(wanted: Iterable[tuple[str, str]]) -> list[PresentationContext]:
    """The contexts that the SCU proposes for these (SOP Class, transfer syntax) pairs, and no more.

    Explicit and Implicit VR Little Endian stand in contexts of their own: a peer that knows both
    then takes the data set as it is, and one that knows only Implicit VR gets it re-encoded.
    """
    pairs: dict[tuple[str, str], None] = {}
    for sop_class, syntax in wanted:
        pairs |= dict.fromkeys((sop_class, str(plain)) for plain in UNCOMPRESSED)
        pairs[sop_class, syntax] = None
    return [build_context(sop_class, syntax) for sop_class, syntax in pairs]


def context_name(context: PresentationContext) -> str:
    """A presentation context by the names of its SOP Class and of its transfer syntaxes."""
    syntaxes = ", ".join(uid.UID(str(syntax)).name for syntax in context.transfer_syntax)
    return f"{uid.UID(str(context.abstract_syntax)).name} in {syntaxes}"

"""JPEG baseline, extended and lossless for pydicom: its plug-in for imagecodecs (libjpeg-turbo).

pydicom's own plug-ins for these need a GPL package, or refuse extended JPEG of 12 bits. Lossless
frames are exact; lossy ones may differ by one value from another decoder (ISO/IEC 10918-2).
"""

from collections.abc import Mapping

import imagecodecs
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.uid import (
    UID,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
)

PLUGIN = "imagecodecs"
SYNTAXES = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
# A name that pydicom asks for: what is needed for each transfer syntax.
DECODER_DEPENDENCIES: Mapping[UID, tuple[str, ...]] = dict.fromkeys(SYNTAXES, (PLUGIN,))


def register() -> None:
    """Let pydicom decode by this plug-in; a second time does nothing."""
    for syntax in SYNTAXES:
        decoder = get_decoder(syntax)
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, decode_frame.__name__))


def is_available(uid: UID) -> bool:
    """True for the transfer syntaxes that this plug-in decodes; pydicom asks."""
    return uid in SYNTAXES and bool(imagecodecs.JPEG8.available)


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """The samples of one frame, 8 or 16 bits each; raises a RuntimeError for a bad code stream."""
    samples = imagecodecs.jpeg8_decode(src)
    runner.set_option("bits_allocated", 8 * samples.itemsize)
    if samples.ndim == 3:  # colours lie pixel by pixel, and are RGB by now
        runner.set_option("planar_configuration", 0)
        runner.set_option("photometric_interpretation", "RGB")
    return bytes(samples.astype(samples.dtype.newbyteorder("<")).tobytes())

"""The cases of `cases.py` of damaged data, and of one instance sent twice."""

from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from inference.errors import Reason as R
from tests import phantoms
from tests.phantoms import Series
from tests.unit.inference.case import (
    DAMAGE,
    Case,
    altered,
    broken,
    cut_header,
    cut_stream,
    only,
    together,
)

DAMAGED = (
    Case(
        DAMAGE,
        "pixels cut short",
        "held",
        broken(phantoms.break_pixels),
        R.PIXEL_DATA_ERROR,
        "image 3 are damaged",
    ),
    Case(
        DAMAGE,
        "a data set cut before its pixels",
        "held; no stack of its series is filled",
        broken(cut_header),
        R.PIXEL_DATA_ERROR,
        "Image 3 ends before its pixels",
    ),
    Case(
        DAMAGE,
        "a JPEG-LS code stream cut short",
        "held",
        broken(cut_stream, Series(transfer_syntax=JPEGLSLossless)),
        R.PIXEL_DATA_ERROR,
        "image 3 are damaged",
    ),
    Case(
        DAMAGE,
        "a JPEG 2000 code stream cut short",
        "held",
        broken(cut_stream, Series(transfer_syntax=JPEG2000Lossless)),
        R.PIXEL_DATA_ERROR,
        "image 3 are damaged",
    ),
    Case(
        DAMAGE,
        "an RLE frame cut short",
        "held",
        broken(cut_stream, Series(transfer_syntax=RLELossless)),
        R.PIXEL_DATA_ERROR,
        "image 3 are damaged",
    ),
    Case(
        DAMAGE,
        "pixels that do not fit rows and columns",
        "held",
        altered(Rows=64),
        R.PIXEL_DATA_ERROR,
        "damaged or incomplete",
    ),
    Case(
        DAMAGE,
        "an impossible number of bits",
        "held",
        altered(BitsStored=17),
        R.PIXEL_DATA_ERROR,
        "impossible",
    ),
    Case(
        DAMAGE,
        "a Frame of Reference UID that breaks PS3.5 9.1",
        "processed; kept as it came",
        altered(FrameOfReferenceUID="1.2.3.04.A."),
        seen=lambda made: bool(made.FrameOfReferenceUID == "1.2.3.04.A."),
    ),
    Case(
        DAMAGE,
        "UIDs of study and series that break PS3.5 9.1",
        "processed; kept as they came",
        altered(StudyInstanceUID="1.02.A", SeriesInstanceUID="550e8400-e29b-41d4"),
        seen=lambda made: bool(made.StudyInstanceUID == "1.02.A"),
    ),
    Case(
        DAMAGE,
        "a Study Instance UID of more than 64 characters",
        "refused",
        Series(edit=lambda made, _: phantoms.put(made, "StudyInstanceUID", b"1." * 33)),
        R.MISSING_UIDS,
        "more than 64 characters",
    ),
    Case(
        DAMAGE,
        "one instance twice, the same",
        "processed once",
        together(Series(), Series()),
        said="differ only in their headers",
    ),
    Case(
        DAMAGE,
        "one instance twice, in another transfer syntax and with another name",
        "the newest is used",
        together(
            Series(),
            Series(transfer_syntax=JPEGLSLossless, patient=phantoms.Patient(name="Real^Name")),
        ),
        said="differ only in their headers",
        seen=lambda made: bool(made.PatientName == "Real^Name"),
    ),
    Case(
        DAMAGE,
        "one instance twice, with other pixels or position",
        "held",
        together(Series(), Series(edit=only(lambda i: i == 1, RescaleIntercept="-1000"))),
        R.CONFLICTING_INSTANCES,
        "received twice under one UID",
    ),
)

"""Every case of a received series that the node has an answer to: the series, and the answer.

The table in `CASES.md` is made of these lists; `tests/jobs/test_cases.py` tries each.
"""

from inference.errors import Reason as R
from tests.phantoms import Series
from tests.unit.inference.case import (
    ENHANCED_CT,
    KINDS,
    MR,
    Case,
    altered,
    assign,
    code,
    lacking,
    output,
)
from tests.unit.inference.cases_damage import DAMAGED
from tests.unit.inference.cases_grouping import GROUPING
from tests.unit.inference.cases_more import GEOMETRY, PIXELS

RESULT = ("DERIVED", "SECONDARY", "AXIAL", "", "AI_INTERP")
KINDS_OF_IMAGES = (
    Case(
        KINDS,
        "an axial average of the scanner",
        "processed; the result's Image Type keeps the words",
        altered(ImageType=["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]),
        seen=lambda made: list(made.ImageType) == [*RESULT, "REFORMATTED", "AVERAGE"],
    ),
    Case(
        KINDS,
        "an axial reformat, in a console's spelling of Image Type",
        "processed; the result's Image Type keeps the words",
        altered(ImageType=["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 MPR"]),
        seen=lambda made: list(made.ImageType) == [*RESULT, "CT_SOM5 MPR"],
    ),
    Case(
        KINDS,
        "derived images, `accept_derived = false`",
        "refused",
        altered(ImageType=["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]),
        R.DERIVED_INPUT,
        "only acquired images",
        ask=output(accept_derived=False),
    ),
    Case(
        KINDS,
        "Image Type absent",
        "judged by positions",
        lacking("ImageType"),
        said="have no Image Type",
    ),
    Case(
        KINDS, "Image Type of two values", "processed", altered(ImageType=["ORIGINAL", "PRIMARY"])
    ),
    Case(
        KINDS,
        "a maximum intensity projection, by its code",
        "refused",
        altered(DerivationCodeSequence=code("113078")),
        R.DERIVED_INPUT,
        "a maximum intensity projection",
    ),
    Case(
        KINDS,
        "a projection, by Image Type",
        "refused",
        altered(ImageType=["DERIVED", "SECONDARY", "MIP"]),
        R.DERIVED_INPUT,
        "projections",
    ),
    Case(
        KINDS,
        "a projection, in a console's spelling of Image Type",
        "refused",
        altered(ImageType=["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 MIP"]),
        R.DERIVED_INPUT,
        "projections",
    ),
    Case(
        KINDS,
        "derived images that their description calls a projection",
        "refused",
        altered(ImageType=["DERIVED", "SECONDARY", "AXIAL"], SeriesDescription="MinIP 10/3"),
        R.DERIVED_INPUT,
        "projections",
    ),
    Case(
        KINDS,
        "acquired images that their description calls thin, for MIP",
        "processed",
        altered(SeriesDescription="1.0 thin for MIP"),
    ),
    Case(
        KINDS,
        "an oblique reformat, in a console's spelling of Image Type",
        "refused",
        altered(
            ImageType=["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 MPR"],
            ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
        ),
        R.DERIVED_INPUT,
        "another plane",
    ),
    Case(
        KINDS,
        "an oblique reformat",
        "refused",
        altered(
            ImageType=["DERIVED", "SECONDARY", "REFORMATTED", "MPR"],
            ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
        ),
        R.DERIVED_INPUT,
        "another plane",
    ),
    Case(
        KINDS,
        "an average in another plane",
        "refused",
        altered(
            ImageType=["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"],
            ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
        ),
        R.DERIVED_INPUT,
        "another plane",
    ),
    Case(
        KINDS,
        "derived images in another plane that say no more of themselves",
        "refused",
        altered(
            ImageType=["DERIVED", "PRIMARY", "AXIAL"],
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
        ),
        R.DERIVED_INPUT,
        "another plane",
    ),
    Case(
        KINDS,
        "the difference of two images",
        "refused",
        altered(ImageType=["DERIVED", "SECONDARY", "AXIAL", "SUBTRACTION"]),
        R.DERIVED_INPUT,
        "computed from several (SUBTRACTION)",
    ),
    Case(
        KINDS,
        "localizers, by their description",
        "refused",
        altered(
            ImageType=["ORIGINAL", "PRIMARY"],
            SeriesDescription="Topogram  0.6  T20s",
        ),
        R.NOT_A_CT_SLICE,
        "localizer",
    ),
    Case(
        KINDS,
        "synthetic images",
        "refused",
        altered(SyntheticData="YES"),
        R.DERIVED_INPUT,
        "artificial intelligence",
    ),
    Case(
        KINDS,
        "enhanced multi-frame CT",
        "refused",
        Series(slices=2, edit=assign(SOPClassUID=ENHANCED_CT, NumberOfFrames=6)),
        R.ENHANCED_NOT_SUPPORTED,
        "Multi-frame",
    ),
    Case(
        KINDS,
        "several frames in a CT slice",
        "refused",
        altered(NumberOfFrames=3),
        R.ENHANCED_NOT_SUPPORTED,
        "Multi-frame",
    ),
    Case(KINDS, "MR", "refused", altered(SOPClassUID=MR, Modality="MR"), R.OUT_OF_SCOPE, "not CT"),
    Case(
        KINDS,
        "another modality in CT images",
        "refused",
        altered(Modality="PT"),
        R.OUT_OF_SCOPE,
        "modality PT",
    ),
    Case(
        KINDS, "a phantom", "refused", altered(QualityControlImage="YES"), R.OUT_OF_SCOPE, "phantom"
    ),
    Case(
        KINDS,
        "an animal",
        "refused",
        altered(PatientSpeciesDescription="Canis lupus"),
        R.OUT_OF_SCOPE,
        "animal",
    ),
    Case(
        KINDS,
        "images made for service",
        "refused",
        altered(ContentQualification="SERVICE"),
        R.OUT_OF_SCOPE,
        "service",
    ),
)

CASES = (*GROUPING, *KINDS_OF_IMAGES, *GEOMETRY, *PIXELS, *DAMAGED)

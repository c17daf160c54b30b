"""Structured reports (TID 1500): what is the same in them, whatever family of models they are of.

A report is of measurement groups, which a family makes with highdicom; this module says who
observed, of which procedure, with which algorithm and under which UIDs, and that it is research.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from inference import header as h
from inference import release
from inference.dataset import Header
from inference.header import Elements
from inference.model import CodeTriple
from inference.results.making import RESEARCH_WORDS, Making, Reference, arguments, completed

if TYPE_CHECKING:
    from highdicom.sr import (
        AlgorithmIdentification,
        MeasurementsAndQualitativeEvaluations,
        ObserverContext,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        SourceImageForMeasurementGroup,
        TrackingIdentifier,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )

    Group = (
        MeasurementsAndQualitativeEvaluations
        | PlanarROIMeasurementsAndQualitativeEvaluations
        | VolumetricROIMeasurementsAndQualitativeEvaluations
    )

ReportClass = Literal["Comprehensive", "Comprehensive 3D"]

# Of what all results share: modules that a document without pixels has not (PS3.3 A.35).
NOT_IN_DOCUMENTS = frozenset(
    {"FrameOfReferenceUID", "PositionReferenceIndicator", "Laterality", "BodyPartExamined"}
    | {"ProtocolName", "PatientPosition", "AnatomicalOrientationType", "AnatomicRegionSequence"}
    | {"RequestAttributesSequence"}
)
# Procedure codes of the source that other programs know too; a site's own are left out.
KNOWN_SCHEMES = frozenset({"LN", "SCT", "SRT", "SNM3", "RADLEX", "C4", "DCM"})
CODE = ("CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning")
UNSPECIFIED = codes.LN.CTUnspecifiedBodyRegion
# Of an order (PS3.3 C.17.2, Referenced Request Sequence): type 2, so empty where nobody says.
REQUEST = (
    *("AccessionNumber", "PlacerOrderNumberImagingServiceRequest", "RequestedProcedureID"),
    *("FillerOrderNumberImagingServiceRequest", "RequestedProcedureDescription"),
    *("RequestedProcedureCodeSequence", "ReferencedStudySequence"),
)


def report(
    first: Header,
    groups: Sequence["Group"],
    evidence: Sequence[Reference],
    text: str,
    making: Making,
    *,
    what: str,
    number: int,
    place: str = "report",
    sop_class: ReportClass = "Comprehensive",
) -> Elements:
    """The whole data set. `evidence` are the instances that the groups refer to, and no others.

    `text` (ASCII) comes after the words of research and before all measurements; `what` begins the
    description of the series, `number` tells it from the others of the job.
    """
    from highdicom.sr import (  # takes seconds
        Comprehensive3DSR,
        ComprehensiveSR,
        MeasurementReport,
        ObservationContext,
        RelationshipTypeValues,
        TextContentItem,
    )

    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer(making)),
        procedure_reported=UNSPECIFIED,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    items = content[0].ContentSequence
    words = TextContentItem(
        name=codes.DCM.Comment,
        value=f"{RESEARCH_WORDS}. {text}",
        relationship_type=RelationshipTypeValues.CONTAINS,
    )
    items.insert(len(items) - 1, words)  # before the measurements
    made_by = Comprehensive3DSR if sop_class == "Comprehensive 3D" else ComprehensiveSR
    made = made_by(
        evidence=[reference.as_dataset(first) for reference in evidence],
        content=content,
        is_complete=True,
        **arguments(making, place),
    )
    _say_procedure(made, first)
    own = completed(made, first, making, what, number, NOT_IN_DOCUMENTS)
    return own | requests(first)


def observer(making: Making) -> "ObserverContext":
    """The node as the device that observed (TID 1002, 1004)."""
    from highdicom.sr import DeviceObserverIdentifyingAttributes, ObserverContext

    return ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=making.creator_uid,
            name=making.station_name,
            manufacturer_name=release.MANUFACTURER,
            model_name=release.MODEL_NAME,
            serial_number=making.creator_uid,
        ),
    )


def requests(first: Header) -> Elements:
    """The orders that the source names, as a document refers to them; bytes are copied."""
    orders = [
        h.elements_of(StudyInstanceUID=first.text("StudyInstanceUID"))
        | h.elements_of(**dict.fromkeys(REQUEST))
        | h.carried(first, ("AccessionNumber",))
        | h.carried(item, REQUEST, repaired=True)
        for item in first.items("RequestAttributesSequence")
    ]
    return h.elements_of(ReferencedRequestSequence=h.items_of(*orders)) if orders else {}


def _say_procedure(made: Dataset, first: Header) -> None:
    """Put the procedure as it is coded in the source in the place of the general one."""
    coded = [
        item
        for item in first.items("ProcedureCodeSequence")
        if item.text("CodingSchemeDesignator") in KNOWN_SCHEMES
        and all(item.raw(keyword).strip() for keyword in ("CodeValue", "CodeMeaning"))
    ]
    if not coded:
        return
    for item in made.ContentSequence:
        if item.ConceptNameCodeSequence[0].CodeValue == codes.DCM.ProcedureReported.value:
            item.ConceptCodeSequence = Items(h.items_of(h.carried(coded[0], CODE, repaired=True)))


def coded(triple: CodeTriple | Code) -> Code:
    """A code of a model as highdicom takes it."""
    return triple if isinstance(triple, Code) else Code(*triple)


def algorithm(making: Making, *parameters: str) -> "AlgorithmIdentification":
    """The model of the job (TID 4019), with its threshold and operating point."""
    from highdicom.sr import AlgorithmIdentification

    own = making.algorithm
    words = [*filter(None, (own.parameters,)), *parameters]
    return AlgorithmIdentification(
        name=own.name,
        version=own.full_version,
        parameters=words or None,
        family=codes.DCM.ArtificialIntelligence,
        manufacturer=release.MANUFACTURER,
    )


def tracking(making: Making, name: str) -> "TrackingIdentifier":
    """The tracking of one finding; its UID is that of a segment of the same name."""
    from highdicom.sr import TrackingIdentifier

    return TrackingIdentifier(uid=making.uid_of(f"tracking of {name}"), identifier=name)


def source_image(reference: Reference) -> "SourceImageForMeasurementGroup":
    """A slice that a group measures."""
    from highdicom.sr import SourceImageForMeasurementGroup

    return SourceImageForMeasurementGroup(reference.sop_class_uid, reference.instance_uid)

"""Sections 5 and 6 of the statement: objects that are made, and how received ones are used."""

from collections.abc import Iterable, Sequence

from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.tag import Tag

from inference import derived, geometry, grouping, header, scope, whitelist
from inference.errors import HELD, Reason
from node.conformance.markdown import bullets, listed, table
from storage.limits import TOO_MANY_RERUNS, TOO_MANY_RESULTS

# Attributes of the derived CT series that are not copied, and where each comes from.
WRITTEN: Sequence[tuple[str, str]] = (
    ("SOPClassUID", "CT Image Storage"),
    ("SOPInstanceUID", "new, keyed and repeatable (5.2)"),
    ("SeriesInstanceUID", "new, keyed and repeatable (5.2)"),
    ("ImageType", "`{image_type}` on every instance"),
    ("SyntheticData", "`YES` on generated slices, `NO` on copied ones"),
    ("SeriesNumber", "{first_number} + that of the source, + 1000 for each made before"),
    ("SeriesDescription", "what was made, then the description of the source; one value"),
    ("SeriesDate", "the start of the job, one value, in the source's offset"),
    ("SeriesTime", "as Series Date"),
    ("ContentDate", "as Series Date"),
    ("ContentTime", "as Series Date"),
    ("InstanceCreationDate", "as Series Date"),
    ("InstanceCreationTime", "as Series Date"),
    ("InstanceCreatorUID", "of this node"),
    ("InstanceNumber", "1 to N, in the direction of the source"),
    ("ContentQualification", "`RESEARCH`"),
    (
        "DerivationDescription",
        "generated: place in the gap, model, weights; copied: that it is one",
    ),
    ("DerivationCodeSequence", "(113085, DCM, Spatial resampling) on generated slices"),
    ("SourceImageSequence", "the received slices used, purpose (121322, DCM)"),
    ("ReferencedSeriesSequence", "exactly the instances that are referenced"),
    ("RelatedSeriesSequence", "the source series, purpose (121323, DCM)"),
    (
        "ContributingEquipmentSequence",
        "the scanner (109101, DCM), what the source names, the model: (109100, DCM) on generated "
        "slices, (109102, DCM) on copied ones",
    ),
    ("ImageComments", "`{generated}`, or `{copied}`"),
    ("Manufacturer", "`{manufacturer}`: the equipment that made the instance is the node"),
    ("ManufacturerModelName", "`{model_name}`"),
    ("SoftwareVersions", "the release of the node"),
    ("StationName", "the AE title of the node"),
    ("ImagePositionPatient", "generated: on the line between its neighbours; copied: the source's"),
    ("ImageOrientationPatient", "of the first received slice, on every instance"),
    ("SliceThickness", "of the source, or the spacing where the route says so"),
    ("SpacingBetweenSlices", "the new spacing along the normal; absent where it is irregular"),
    ("SliceLocation", "by the law of the source; absent where the source has none"),
    ("RescaleType", "`HU`"),
    ("HighBit", "Bits Stored - 1"),
    ("SamplesPerPixel", "1"),
    ("LossyImageCompression", "`01` where a source was ever compressed with loss"),
    ("PixelData", "copied slices: the stored values of the source, bit-identical"),
)
COPIED: Sequence[tuple[str, Sequence[str]]] = (
    ("Patient and clinical trial, byte for byte", whitelist.PATIENT),
    ("Study and patient study, byte for byte", whitelist.STUDY),
    ("Character set", whitelist.CHARACTER_SET),
    ("Series, frame of reference, institution", whitelist.SERIES),
    ("CT acquisition, where all received slices agree", whitelist.UNIFORM),
    ("Acquisition and contrast, of the nearest received slice", whitelist.ACQUISITION),
    ("Pixel format, of the slice whose stored values are used", whitelist.PIXELS),
    ("Window, of the first received slice", whitelist.WINDOW),
)
REASONS: dict[Reason, str] = {
    Reason.NOTHING_TO_DO: "The slices lie as close as asked for.",
    Reason.TOO_FEW_SLICES: "The stack has fewer slices than the model needs.",
    Reason.NOT_A_CT_SLICE: "No instance is a CT slice: localizers, dose pages, screen captures.",
    Reason.DERIVED_INPUT: "The source is itself a projection, a synthetic or an oblique image.",
    Reason.MIXED_ACQUISITIONS: "Two acquisitions or phases interleave in one stack.",
    Reason.ENHANCED_NOT_SUPPORTED: "Enhanced multi-frame objects are kept, not processed.",
    Reason.NO_GEOMETRY: "Position, orientation, spacing or frame of reference is absent.",
    Reason.BAD_ORIENTATION: "The direction cosines are not unit vectors at a right angle.",
    Reason.OUT_OF_SCOPE: "The image is outside of what the model is made for.",
    Reason.NOT_HU: "The values are no Hounsfield units (multi-energy, iodine maps).",
    Reason.NO_DECODER: "No decoder for the transfer syntax is installed; the package is named.",
    Reason.TOO_LARGE: "The result would be larger than the node makes.",
    Reason.ACQUIRED_THIN_SERIES_EXISTS: "The same acquisition was received in thinner slices.",
    Reason.DUPLICATE_POSITIONS: "Different instances lie at one position.",
    Reason.MISSING_UIDS: "A Study, Series, SOP Class or SOP Instance UID is empty.",
    Reason.CONFLICTING_INSTANCES: "One SOP Instance UID came with different pixels or geometry.",
    Reason.PATIENT_MISMATCH: "The instances disagree about the patient or the study.",
    Reason.MISSING_SLICES: "Slices are missing; nothing is generated across a hole.",
    Reason.PIXEL_DATA_ERROR: "Pixel data is damaged or cut short.",
    Reason.OUTPUT_CHECK_FAILED: "The derived series did not pass its check; it was not sent.",
    Reason.LOW_CONFIDENCE: "The model is not sure enough of its result.",
}


def created() -> list[str]:
    """The derived CT series."""
    values = {
        "image_type": "\\".join(derived.IMAGE_TYPE),
        "first_number": derived.FIRST_SERIES_NUMBER,
        "generated": derived.GENERATED_COMMENT,
        "copied": derived.COPIED_COMMENT,
        "manufacturer": scope.MANUFACTURER,
        "model_name": scope.MODEL_NAME,
    }
    return [
        "## 5 Objects created",
        "### 5.1 Derived CT series",
        f"CT Image Storage (`{scope.CT_IMAGE}`), single frame, Explicit VR Little Endian, in the "
        "study and the frame of reference of its source, with a new series. It holds the generated "
        "slices and, where the route asks for them, copies of the received ones. Its header is "
        "built from the following lists and nothing else: no private attribute, no exposure or "
        "dose, no overlay, no signature, no reference to a performed procedure step.",
        table(
            ("attribute", "tag", "value"),
            [(*_named(keyword), text.format(**values)) for keyword, text in WRITTEN],
        ),
        "Copied from the source where it has them; absent attributes stay absent:",
        table(("attributes", "keywords"), [(what, _words(words)) for what, words in COPIED]),
        f"Files name the Implementation Class UID `{header.IMPLEMENTATION_CLASS_UID}` and the "
        f"version `{header.IMPLEMENTATION_VERSION_NAME}`. No standard extended SOP Class, no "
        "private code, no private attribute. Value 5 of Image Type is the node's own; a PACS can "
        "exclude it from auto-forwarding.",
        "### 5.2 UIDs",
        "`2.25.` and the integer of a UUID made of an HMAC-SHA256 with the secret of the site: the "
        "same input, model and parameters give the same instances; anything else gives others. The "
        "same UID always means the same bytes.",
    ]


def used() -> list[str]:
    """How attributes of received objects are used."""
    separating: Iterable[str] = (*grouping.SEPARATING, "ImageType", "ImageOrientationPatient")
    return [
        "## 6 Usage of received objects",
        "### 6.1 Stacks",
        "The instances of a series that agree in the following attributes form one stack, and each "
        "stack has a job and a derived series of its own: "
        + listed((*separating, "PixelSpacing", "FrameOfReferenceUID"), empty="none")
        + ". These separate stacks only where their slices cover the same places: "
        + listed(geometry.ACQUISITION, empty="none")
        + "; acquisitions that take turns are refused. Slices are ordered by their position along "
        "the normal, never by Instance Number or Slice Location.",
        "### 6.2 The node's own results",
        "They are accepted and kept when a peer sends them back, and never processed. They are "
        "recognised by their UIDs, by Manufacturer and Contributing Equipment, by Synthetic Data "
        "and by value 5 of Image Type.",
        "### 6.3 Arrivals, jobs and deliveries",
        bullets(
            [
                "An arrival (one peer bringing one series) is `arriving` or `complete`.",
                "A job is `queued`, `running`, `succeeded`, `refused` (rightly not processed, "
                "needs nobody), `failed` (the node or the model failed), `held` (needs a person) "
                "or `cancelled`.",
                "A delivery is `queued`, `running`, `sent` (stored, every instance), `confirmed`, "
                "`held` or `cancelled`.",
                "More derived series of one study in 24 hours than `completion.results_per_study` "
                f"allows (`{TOO_MANY_RESULTS}`), or jobs of one stack and route than "
                f"`completion.reruns` (`{TOO_MANY_RERUNS}`), are held. A series of which no file "
                "can be read is held, `PIXEL_DATA_ERROR`.",
                "A further derived series of a stack says its revision in Series Description, or "
                "the route that made it, and has a Series Number of its own.",
            ]
        ),
        "### 6.4 Series that are not processed",
        "A verdict on a series is never a failure of its storage: the sender has been answered "
        "Success.",
        table(
            ("reason", "state", "meaning"),
            [
                (f"`{reason}`", "held" if reason in HELD else "refused", REASONS[reason])
                for reason in Reason
            ],
        ),
    ]


def _named(keyword: str) -> tuple[str, str]:
    number = tag_for_keyword(keyword)
    assert number is not None, keyword
    tag = Tag(number)
    return dictionary_description(tag), f"({tag.group:04X},{tag.element:04X})"


def _words(keywords: Sequence[str]) -> str:
    return ", ".join(keywords)

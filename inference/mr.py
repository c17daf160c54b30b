"""MR slices: which of them are in scope, and what their values mean."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from inference import scope
from inference.dataset import Header, Stack, newest, quoted
from inference.errors import Reason, Unprocessable
from inference.geometry import Layout, arrange, missing_sentence
from inference.kinds import NO_SLICES, component_of, mr_kinds_of, words_of
from inference.pixels import PixelFormat, PixelReader, Stored
from inference.scope import (
    MR_IMAGE,
    PROJECTION_CODES,
    check_instances,
    check_patient,
    check_subject,
    is_derived_by_node,
)
from inference.volume import Plane, Volume

# Words of Image Type that name what is no picture of anatomy by itself, and the words of
# descriptions that go with them.
NO_ANATOMY = {
    "DIFFUSION": "diffusion",
    "DWI": "diffusion",
    "TRACEW": "diffusion",
    "TENSOR": "diffusion",
    "ADC": "a diffusion map",
    "EADC": "a diffusion map",
    "FA": "a diffusion map",
    "PERFUSION": "perfusion",
    "RCBF": "a perfusion map",
    "RCBV": "a perfusion map",
    "CBF": "a perfusion map",
    "CBV": "a perfusion map",
    "MTT": "a perfusion map",
    "TTP": "a perfusion map",
    "ASL": "perfusion",
    "TOF": "an angiography",
    "MRA": "an angiography",
    "ANGIO": "an angiography",
    "SWI": "susceptibility",
    "FMRI": "functional images",
    "BOLD": "functional images",
    "SPECTROSCOPY": "spectroscopy",
    "MOSAIC": "a mosaic of slices in one image",
}
# In a description the flip angle has two of these letters, too.
DESCRIBED = NO_ANATOMY.keys() - {"FA"}
# Body parts that a brain does not lie in; others, and none, are for the pixels to decide.
OTHER_BODY_PARTS = frozenset(
    {"ABDOMEN", "ANKLE", "ARM", "BREAST", "CHEST", "CSPINE", "ELBOW", "EXTREMITY", "FOOT", "HAND"}
    | {"HEART", "HIP", "KNEE", "LEG", "LIVER", "LSPINE", "PELVIS", "PROSTATE", "SHOULDER"}
    | {"SPINE", "TSPINE", "WRIST"}
)
LONG_TR_MS = 1000.0  # a spin echo with a longer repetition time is not weighted by T1
OTHER_WEIGHTING = frozenset(["T2", "T2W", "FLAIR", "PD", "PDW", "STIR", "DIR"])


def instance_fault(header: Header) -> Unprocessable | None:
    """The reason why an instance is no MR slice; None for what looks like one."""
    fault = scope.instance_fault(header)
    is_other = fault is None or fault.reason in (Reason.NOT_A_CT_SLICE, Reason.OUT_OF_SCOPE)
    if header.text("SOPClassUID") == MR_IMAGE or not is_other:
        return fault
    modality = quoted(header.text("Modality") or "(empty)")
    sentence = f"The object is no MR slice (Modality {modality})."
    return Unprocessable(Reason.NOT_AN_MR_SLICE, sentence)


def check_scope(header: Header) -> None:
    """Raise Unprocessable for a slice that is no picture of the anatomy of a head."""
    check_subject(header, "MR")
    codes = PROJECTION_CODES.keys() & header.codes("DerivationCodeSequence")
    if is_derived_by_node(header) or codes or words_of(header, *NO_SLICES):
        sentence = "The images are a projection, a rendering or a result of this node already."
        raise Unprocessable(Reason.DERIVED_INPUT, sentence)
    for sentence in _out_of_scope(header):
        raise Unprocessable(Reason.OUT_OF_SCOPE, sentence)


def _out_of_scope(header: Header) -> list[str]:
    """Objections to a head's anatomy: the attribute, its value, and the meaning of that."""
    body_part = header.text("BodyPartExamined").upper()
    b_value = header.number("DiffusionBValue")
    component = component_of(header)
    tests: Mapping[str, bool] = {
        f"Body Part Examined is {quoted(body_part)}; only heads are in scope.": (
            body_part in OTHER_BODY_PARTS
        ),
        f"Diffusion b-value is {b_value or 0.0:g}: diffusion is out of scope.": bool(b_value),
        "Angio Flag is Y: angiography is out of scope.": header.text("AngioFlag").upper() == "Y",
        "Scanning Sequence has EP: echo-planar images are out of scope.": (
            "EP" in header.values("ScanningSequence")
        ),
        f"Image Type says {component}: only magnitude images are in scope.": (
            component not in ("", "magnitude")
        ),
    }
    named = [
        f"{name} says {word}: {NO_ANATOMY[word]}, which is out of scope."
        for name, values, known in (
            ("Image Type", header.values("ImageType")[2:], NO_ANATOMY.keys()),
            ("Series Description", header.values("SeriesDescription"), DESCRIBED),
        )
        for word in sorted(_words(values) & known)
    ]
    return [sentence for sentence, applies in tests.items() if applies] + named


def weighting_doubt(header: Header) -> str:
    """A sentence where the images are not, or may not be, T1-weighted; such a result is held."""
    described = (
        _words([header.text("SeriesDescription"), header.text("ProtocolName")]) & OTHER_WEIGHTING
    )
    if described:
        return f"the description says {sorted(described)[0]}, and only T1 was measured"
    repetition = header.number("RepetitionTime") or 0.0
    if "SE" in header.values("ScanningSequence") and repetition >= LONG_TR_MS:
        return f"a spin echo with a Repetition Time of {repetition:g} ms is not T1-weighted"
    return ""


def _words(values: Sequence[str]) -> set[str]:
    return {word for value in values for word in re.split("[^A-Z0-9]+", value.upper()) if word}


def examine(stack: Stack) -> Layout:
    """The layout of a stack that may be processed; raises Unprocessable for any other."""
    headers = newest(stack.headers)
    check_instances(headers, instance_fault)
    check_patient(headers)
    for header in headers:
        check_scope(header)
    if stack.fault:
        raise Unprocessable(stack.fault_reason, stack.fault)
    if len(set(mr_kinds_of(headers))) > 1:
        sentence = (
            "The images differ in echo, inversion, b-value, part of the complex image or time "
            "(Temporal Position Identifier)."
        )
        raise Unprocessable(Reason.MIXED_ACQUISITIONS, sentence)
    layout = arrange(headers)
    if layout.missing:
        raise Unprocessable(Reason.MISSING_SLICES, missing_sentence(layout, "."))
    return layout


def verdict(stack: Stack) -> Unprocessable | None:
    """The reason not to process a stack, from its headers alone; None where there is none."""
    try:
        examine(stack)
    except Unprocessable as reason:
        return reason
    return None


def values_of(header: Header, stored: Stored) -> Plane:
    """Stored values in the units of the scanner, which are arbitrary; padding is the least."""
    layout = PixelFormat.of(header)
    direct = layout.least + layout.most - stored if layout.is_inverted else stored
    plane = (direct * layout.slope + layout.intercept).astype(np.float32)
    padded = layout.declared(stored)
    if padded.any() and not padded.all():
        plane[padded] = plane[~padded].min()
    return plane


def open_volume(layout: Layout, pixels: PixelReader) -> Volume:
    """A stack as a volume whose slices are decoded when they are asked for."""

    def read(index: int) -> Plane:
        header = layout.headers[index]
        return values_of(header, pixels.stored(header))

    return Volume(layout.geometry, read)

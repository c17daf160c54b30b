"""No generated slice lies where a received slice of its series lies, however the series is split.

`MIDSLICE_EXAMPLES` sets how many series are tried; a hundred by default.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.tag import Tag

from inference.dataset import Header, Stack, read_header
from inference.errors import Unprocessable
from inference.geometry import EQUAL_GAPS, examine
from inference.request import Output
from inference.stacks import stacks_of
from tests import phantoms
from tests.phantoms import Series

EXAMPLES = int(os.environ.get("MIDSLICE_EXAMPLES", "100"))
MOST_FACTOR = 10
# Attribute and the values that slices of one volume may have of it, by turns or at random.
SPLITS: dict[str, list[object]] = {
    "BitsStored": [11, 12, 16],
    "HighBit": [10, 11, 15],
    "PixelRepresentation": [0, 1],
    "PhotometricInterpretation": ["MONOCHROME1", "MONOCHROME2"],
    "RescaleIntercept": ["0", "-1024"],
    "ImageType": [
        ["ORIGINAL", "PRIMARY", "AXIAL"],
        ["ORIGINAL", "SECONDARY", "AXIAL", "CT_SOM5 SPI"],
        ["DERIVED", "PRIMARY"],
    ],
    "AcquisitionNumber": ["1", "2", "3"],
    "AcquisitionTime": ["101010", "101011", "101210", "101211.5"],
    "TriggerTime": ["0", "267", "270", "630"],
    "TemporalPositionIdentifier": ["1", "2"],
    "NominalPercentageOfCardiacPhase": [30.0, 70.0],
    "ContrastBolusAgent": ["", "Ultravist"],
    "KVP": ["120", "120.0", None],
    "ConvolutionKernel": ["B30f", "b30f", None],
    "PixelSpacing": [["0.8", "0.8"], ["0.8001", "0.8"]],
    "ImageOrientationPatient": [[1, 0, 0, 0, 1, 0], [1, 0.0005, 0, -0.0005, 1, 0]],
    "FrameOfReferenceUID": ["1.2.3", None],
    "SliceThickness": ["5", "2.5", None],
}


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One volume of slices, some of them twice, whose attributes were chosen at random."""

    headers: tuple[Header, ...]

    def __repr__(self) -> str:
        return "\n".join(map(described, self.headers))


def described(header: Header) -> str:
    """The place of a slice and what it says of all that may split a series."""
    words = [f"{word}={header.value(word)}" for word in SPLITS if header.value(word)]
    return f"{own(header):g} mm, {header.uid}: {' '.join(words)}"


def header_of(index: int, place_mm: float, number: int, values: dict[str, object]) -> Header:
    """A slice as it would be read, without a file: ten thousand series are made."""
    base = BASE[0]
    made = {
        "SOPInstanceUID": f"1.2.3.4.{index + 1}",
        "InstanceNumber": str(number),
        "ImagePositionPatient": ["0", "0", f"{place_mm:.4f}"],
        **values,
    }
    elements = dict(base.elements)
    for keyword, value in made.items():
        tag = tag_for_keyword(keyword)
        assert tag is not None
        if value is None:
            elements.pop(tag, None)
        else:
            elements[tag] = RawDataElement(
                Tag(tag), dictionary_VR(tag), 0, encoded(keyword, value), 0, False, True
            )
    return replace(base, path=Path(f"{index}.dcm"), elements=elements, order=index)


def encoded(keyword: str, value: object) -> bytes:
    made = Dataset()
    setattr(made, keyword, value)
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, True
    write_data_element(stream, made[keyword])
    return bytes(stream.getvalue()[8:])


BASE: list[Header] = []


@st.composite
def splits(draw: st.DrawFn) -> Split:
    gaps = draw(st.lists(st.sampled_from([1.0, 2.5, 2.5, 2.5, 5.0]), min_size=3, max_size=12))
    places = np.cumsum([0.0, *(gaps if draw(st.booleans()) else [gaps[0]] * len(gaps))]).tolist()
    again = draw(st.lists(st.sampled_from(places), max_size=len(places)))
    if draw(st.booleans()):
        again = places[draw(st.integers(0, 2)) :]
    jitter = draw(st.sampled_from([0.0, 0.0, 0.05, 0.3, 1.25]))
    places += [place + jitter for place in again]
    keywords = draw(st.lists(st.sampled_from(sorted(SPLITS)), max_size=3, unique=True))
    values: list[dict[str, object]] = [{} for _ in places]
    for keyword in keywords:
        choices = st.sampled_from(SPLITS[keyword])
        by_run = draw(st.integers(1, 4))
        drawn = draw(st.lists(choices, min_size=len(places), max_size=len(places)))
        for index, own in enumerate(values):
            own[keyword] = drawn[index // by_run]
    numbers = draw(st.permutations(range(1, len(places) + 1)))
    return Split(
        tuple(
            header_of(index, place, numbers[index], values[index])
            for index, place in enumerate(places)
        )
    )


def generated_mm(stack: Stack) -> list[tuple[float, float]]:
    """(place, half a gap tolerance) of all slices that any factor would generate."""
    try:
        layout = examine(stack, Output(across_missing="leave"))
    except Unprocessable:
        return []
    places = layout.geometry.distances_mm
    return [
        (places[gap] + step / factor * width, EQUAL_GAPS / 2 * width)
        for gap, width in enumerate(layout.geometry.gaps_mm)
        if gap not in layout.missing
        for factor in range(2, MOST_FACTOR + 1)
        for step in range(1, factor)
    ]


def test_nothing_is_generated_where_a_real_slice_lies(tmp_path: Path) -> None:
    (path, *_) = phantoms.write(tmp_path, Series(slices=1))
    BASE[:] = [read_header(path)]
    processed: list[bool] = []
    parted: list[Stack] = []

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(splits())
    def any_split(split: Split) -> None:
        received = np.array([float(h.numbers("ImagePositionPatient")[2]) for h in split.headers])
        for stack in stacks_of(split.headers):
            if [len(again) for again in stacks_of(stack.headers)] != [len(stack)]:
                parted.append(stack)  # the worker, which has no more than these, refuses it
                continue
            generated = generated_mm(stack)
            processed.append(bool(generated))
            for place, tolerance in generated:
                # What lies at a slice of the stack itself is that place twice.
                others = received[
                    np.abs(received[:, None] - [own(h) for h in stack.headers]).min(axis=1) > 0.1
                ]
                assert not len(others) or np.abs(others - place).min() >= tolerance

    any_split()
    assert sum(processed) > EXAMPLES // 10
    # Under 2 % of many; of a hundred, which are drawn anew each time, a few more by chance.
    assert len(parted) <= len(processed) // 50 + 4


def own(header: Header) -> float:
    return header.numbers("ImagePositionPatient")[2]

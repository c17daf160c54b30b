"""The verification of a demo: what the PACS holds, read and judged without the node's own code."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

SAME_PLACE_MM = 0.01

Hounsfield = NDArray[np.float64]  # (rows, columns)


@dataclass(frozen=True, eq=False)
class Series:
    """The instances of one series in ascending order along their common normal."""

    instances: tuple[Dataset, ...]
    heights_mm: NDArray[np.float64]  # (instances,): along the normal

    @classmethod
    def read(cls, paths: Sequence[Path]) -> "Series":
        """The series in Part 10 files, whatever their names and their order."""
        instances = [dcmread(path) for path in paths]
        return cls.of(instances)

    @classmethod
    def of(cls, instances: Sequence[Dataset]) -> "Series":
        """The series of these data sets."""
        if not instances:
            raise ValueError("a series without instances")
        row, column = np.array(instances[0].ImageOrientationPatient, float).reshape(2, 3)
        normal = np.cross(row, column)
        heights = np.array([np.array(i.ImagePositionPatient, float) @ normal for i in instances])
        order = np.argsort(heights, kind="stable")
        return cls(tuple(instances[i] for i in order), heights[order])

    def __len__(self) -> int:
        return len(self.instances)

    @cached_property
    def positions(self) -> NDArray[np.float64]:
        """(instances, 3): Image Position (Patient), mm."""
        return np.array([i.ImagePositionPatient for i in self.instances], float)

    @cached_property
    def gap_mm(self) -> float:
        """The usual distance between neighbours; 0 for a single slice."""
        return float(np.median(np.diff(self.heights_mm))) if len(self) > 1 else 0.0

    @cached_property
    def pixel_spacing_mm(self) -> tuple[float, float]:
        """Between rows, between columns."""
        rows, columns = self.instances[0].PixelSpacing
        return float(rows), float(columns)

    @property
    def series_uid(self) -> str:
        """Of the first instance."""
        return str(self.instances[0].SeriesInstanceUID)

    def hounsfield(self, index: int) -> Hounsfield:
        """One slice in HU."""
        instance = self.instances[index]
        stored = instance.pixel_array.astype(np.float64)
        return stored * float(instance.RescaleSlope) + float(instance.RescaleIntercept)

    def volume(self) -> NDArray[np.int16]:
        """(instances, rows, columns) HU, rounded: enough for a picture, half the memory."""
        first = self.hounsfield(0)
        whole = np.empty((len(self), *first.shape), np.int16)
        for index in range(len(self)):
            whole[index] = np.clip(np.rint(self.hounsfield(index)), -32768, 32767)
        return whole

    def at(self, height_mm: float) -> int | None:
        """The index of the slice at that height, where there is one."""
        nearest = int(np.argmin(np.abs(self.heights_mm - height_mm)))
        return nearest if abs(self.heights_mm[nearest] - height_mm) < SAME_PLACE_MM else None


POSITION_MM = 1e-4  # a DS of 16 characters is far more exact
STUDY_AND_PATIENT = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
SAME_IN_ALL = (
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "SeriesDate",
    "SeriesTime",
    "ImageType",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "RescaleSlope",
    "RescaleIntercept",
    "FrameOfReferenceUID",
)
NOT_THIS_SERIES = (  # no X-rays were spent on a generated slice
    "Exposure",
    "ExposureTime",
    "XRayTubeCurrent",
    "CTDIvol",
    "ReferencedPerformedProcedureStepSequence",
)
ACQUISITION_EQUIPMENT, SYNTHESIZING_EQUIPMENT = "109101", "109100"  # PS3.16 CID 7005


@dataclass(frozen=True)
class Check:
    """One row of the table: what must be true, whether it is, and what was found."""

    name: str
    ok: bool
    found: str


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the checks look at."""

    received: Series
    derived: Series
    factor: int  # slices out per slice in

    def generated(self) -> Iterator[tuple[int, Dataset]]:
        """Index and data set of each slice at a place where none was received."""
        for index, instance in enumerate(self.derived.instances):
            if self.received.at(float(self.derived.heights_mm[index])) is None:
                yield index, instance

    def copied(self) -> Iterator[tuple[int, int]]:
        """Index of each slice at a received place, and the index of the received one."""
        for index, height in enumerate(self.derived.heights_mm):
            source = self.received.at(float(height))
            if source is not None:
                yield index, source


def verify(evidence: Evidence) -> list[Check]:
    """Every check, in the order in which a person would ask."""
    return [_row(name, check, evidence) for name, check in CHECKS]


def _row(name: str, check: Callable[[Evidence], str], evidence: Evidence) -> Check:
    try:
        return Check(name, ok=True, found=check(evidence))
    except _FaultError as fault:
        return Check(name, ok=False, found=str(fault))
    except (AttributeError, KeyError, IndexError) as absent:
        return Check(name, ok=False, found=f"absent: {absent}")


class _FaultError(Exception):
    """What was found instead."""


def _demand(condition: object, found: str) -> None:
    if not condition:
        raise _FaultError(found)


def _count(evidence: Evidence) -> str:
    received, derived = len(evidence.received), len(evidence.derived)
    expected = (received - 1) * evidence.factor + 1
    _demand(derived == expected, f"{derived} slices, expected {expected}")
    return f"{received} received + {derived - received} generated = {derived}"


def _places(evidence: Evidence) -> str:
    derived, received = evidence.derived, evidence.received
    first, last = received.positions[0], received.positions[-1]
    line = np.linspace(first, last, len(derived))  # (slices, 3)
    worst = float(np.abs(derived.positions - line).max())
    _demand(worst < POSITION_MM, f"a slice lies {worst:.4f} mm off its place on the line")
    orientations = {tuple(map(float, i.ImageOrientationPatient)) for i in derived.instances}
    expected = tuple(map(float, received.instances[0].ImageOrientationPatient))
    _demand(orientations == {expected}, "the orientation is not that of the received series")
    stated = {float(i.SpacingBetweenSlices) for i in derived.instances}
    _demand(
        all(abs(s - derived.gap_mm) < POSITION_MM for s in stated),
        f"Spacing Between Slices says {sorted(stated)} mm",
    )
    return f"every {derived.gap_mm:g} mm over {abs(float(np.ptp(derived.heights_mm))):g} mm"


def _copies(evidence: Evidence) -> str:
    pairs = list(evidence.copied())
    _demand(
        {source for _, source in pairs} == set(range(len(evidence.received))),
        f"{len(pairs)} of {len(evidence.received)} received slices are there",
    )
    for index, source in pairs:
        copy = evidence.derived.instances[index]
        original = evidence.received.instances[source]
        same = np.array_equal(copy.pixel_array, original.pixel_array)
        same = same and copy.pixel_array.dtype == original.pixel_array.dtype
        scaled = copy.RescaleSlope == original.RescaleSlope
        scaled = scaled and copy.RescaleIntercept == original.RescaleIntercept
        _demand(same and scaled, f"slice {index + 1} differs from the received one")
    return f"all {len(pairs)} bit-identical to what the scanner sent"


def _synthetic(evidence: Evidence) -> str:
    generated = {index for index, _ in evidence.generated()}
    for index, instance in enumerate(evidence.derived.instances):
        says, expected = instance.SyntheticData, "YES" if index in generated else "NO"
        _demand(says == expected, f"slice {index + 1}: Synthetic Data is {says}, not {expected}")
    return f"YES on {len(generated)}, NO on {len(evidence.derived) - len(generated)}"


def _honest(evidence: Evidence) -> str:
    kinds = {"\\".join(i.ImageType) for i in evidence.derived.instances}
    _demand(kinds == {"DERIVED\\SECONDARY\\AXIAL\\\\AI_INTERP"}, f"Image Type {sorted(kinds)}")
    for index, instance in evidence.generated():
        words = f"{instance.ImageComments} {instance.DerivationDescription}"
        _demand("not acquired" in words, f"slice {index + 1} does not say that it was not acquired")
    description = str(evidence.derived.instances[0].SeriesDescription)
    _demand("NOT ACQUIRED" in description, f"Series Description is {description!r}")
    return description


def _fresh(evidence: Evidence) -> str:
    received = {str(i.SOPInstanceUID) for i in evidence.received.instances}
    derived = [str(i.SOPInstanceUID) for i in evidence.derived.instances]
    _demand(len(set(derived)) == len(derived), "two slices have the same SOP Instance UID")
    _demand(not received & set(derived), "a SOP Instance UID of the scanner is used again")
    _demand(evidence.derived.series_uid != evidence.received.series_uid, "the same Series UID")
    outside = [i for i in evidence.derived.instances if not i.SOPInstanceUID.startswith("2.25.")]
    _demand(not outside, f"{len(outside)} UIDs are not made of a UUID")
    meta = all(
        i.file_meta.MediaStorageSOPInstanceUID == i.SOPInstanceUID
        for i in evidence.derived.instances
    )
    _demand(meta, "a file's meta information names another instance")
    return f"{len(derived)} new SOP Instance UIDs, one new Series UID"


def _one_series(evidence: Evidence) -> str:
    for keyword in SAME_IN_ALL:
        values = {str(i[keyword].value) for i in evidence.derived.instances}
        _demand(len(values) == 1, f"{keyword} has {len(values)} values in one series")
    numbers = sorted(int(i.InstanceNumber) for i in evidence.derived.instances)
    _demand(numbers == list(range(1, len(numbers) + 1)), "Instance Numbers are not 1 to N")
    return f"Instance Numbers 1 to {len(numbers)}, one description, one scale"


def _patient(evidence: Evidence) -> str:
    source = evidence.received.instances[0]
    for instance in evidence.derived.instances:
        for keyword in STUDY_AND_PATIENT:
            _demand(
                instance.get(keyword) == source.get(keyword),
                f"{keyword} is not that of the received series",
            )
    return "patient, study, accession number: unchanged"


def _frame_of_reference(evidence: Evidence) -> str:
    received = {str(i.FrameOfReferenceUID) for i in evidence.received.instances}
    derived = {str(i.FrameOfReferenceUID) for i in evidence.derived.instances}
    _demand(derived <= received, "a Frame of Reference UID that the scanner did not send")
    _demand(len(derived) == 1, f"{len(derived)} Frame of Reference UIDs in one series")
    return "the scanner's: cross-reference lines work"


def _references(evidence: Evidence) -> str:
    uids = [str(i.SOPInstanceUID) for i in evidence.received.instances]
    for index, instance in evidence.generated():
        after = int(
            np.searchsorted(evidence.received.heights_mm, evidence.derived.heights_mm[index])
        )
        neighbours = set(uids[after - 1 : after + 1])
        _demand(neighbours <= _sources(instance), f"slice {index + 1} names not both neighbours")
    for index, source in evidence.copied():
        named = _sources(evidence.derived.instances[index])
        _demand(named == {uids[source]}, f"slice {index + 1} does not name its source")
    for index, instance in enumerate(evidence.derived.instances):
        named, listed = _sources(instance), _listed(instance)
        _demand(named <= set(uids), f"slice {index + 1} names an instance that was never sent")
        _demand(listed == named, f"slice {index + 1}: Referenced Series Sequence differs")
    return "each generated slice names its neighbours, each copy its source"


def _sources(instance: Dataset) -> set[str]:
    return {str(item.ReferencedSOPInstanceUID) for item in instance.SourceImageSequence}


def _listed(instance: Dataset) -> set[str]:
    return {
        str(item.ReferencedSOPInstanceUID)
        for series in instance.ReferencedSeriesSequence
        for item in series.ReferencedInstanceSequence
    }


def _equipment(evidence: Evidence) -> str:
    scanner = str(evidence.received.instances[0].ManufacturerModelName)
    models = set()
    for instance in evidence.derived.instances:
        by_purpose = {
            str(item.PurposeOfReferenceCodeSequence[0].CodeValue): item
            for item in instance.ContributingEquipmentSequence
        }
        named = str(by_purpose[ACQUISITION_EQUIPMENT].get("ManufacturerModelName", ""))
        _demand(named == scanner, f"the acquisition equipment is given as {named!r}")
        _demand(str(instance.get("ManufacturerModelName")) != scanner, "the scanner is the maker")
        if instance.SyntheticData == "YES":
            model = by_purpose[SYNTHESIZING_EQUIPMENT]
            models.add(f"{model.ManufacturerModelName} {_version(model)}")
    _demand(len(models) == 1, f"{len(models)} models are named")
    return f"scanner {scanner}; model {models.pop()}"


def _version(item: Dataset) -> str:
    versions = item.get("SoftwareVersions", "")
    return versions if isinstance(versions, str) else str(versions[0])


def _left_out(evidence: Evidence) -> str:
    for instance in evidence.derived.instances:
        present = [keyword for keyword in NOT_THIS_SERIES if keyword in instance]
        _demand(not present, f"{', '.join(present)} of the scanner's exposure is repeated")
        private = [element.tag for element in instance if element.tag.is_private]
        _demand(not private, f"private attributes: {private[:3]}")
    return "no dose, no exposure, no private attribute"


CHECKS: Sequence[tuple[str, Callable[[Evidence], str]]] = (
    ("No slice is missing, none too many", _count),
    ("Every slice lies at its place", _places),
    ("Received slices are unchanged", _copies),
    ("Generated slices are marked as synthetic", _synthetic),
    ("The series says what it is", _honest),
    ("UIDs are new", _fresh),
    ("One stack for the viewer", _one_series),
    ("Same patient, same study", _patient),
    ("Same frame of reference", _frame_of_reference),
    ("Sources are named", _references),
    ("Scanner and model are named", _equipment),
    ("Nothing is claimed that was not done", _left_out),
)


LEAST_HU, MOST_HU = -1024.0, 2048.0  # the window of the figures
TOLERANCE_DB = 0.02  # rounding to stored values costs a linear slice no more than this


@dataclass(frozen=True)
class Place:
    """One acquired slice that the node never saw, and what was made in its place."""

    height_mm: float
    generated_db: float
    linear_db: float
    true: Hounsfield = field(repr=False, compare=False)

    @property
    def gain_db(self) -> float:
        """How much closer to the truth than linear interpolation."""
        return self.generated_db - self.linear_db


@dataclass(frozen=True)
class Comparison:
    """Every acquired slice against the generated one at its place."""

    places: tuple[Place, ...]
    acquired: int

    @property
    def generated_db(self) -> float:
        """Mean PSNR of the generated slices."""
        return statistics.fmean(place.generated_db for place in self.places)

    @property
    def linear_db(self) -> float:
        """Mean PSNR of linear interpolation at the same places."""
        return statistics.fmean(place.linear_db for place in self.places)

    @property
    def gain_db(self) -> float:
        """The mean gain."""
        return self.generated_db - self.linear_db

    @property
    def closer(self) -> int:
        """At how many places the generated slice is closer to the truth."""
        return sum(place.gain_db > 0.0 for place in self.places)

    @property
    def typical(self) -> Place:
        """The place whose gain is the median: neither the best nor the worst to show."""
        return sorted(self.places, key=lambda place: place.gain_db)[len(self.places) // 2]

    def check(self, *, must_gain: bool) -> Check:
        """The row of the table: all compared, and better than linear, or as good where it is."""
        least = 0.0 if must_gain else -TOLERANCE_DB
        ok = bool(self.places) and len(self.places) == self.acquired and self.gain_db > least
        found = f"{len(self.places)} of {self.acquired} acquired slices could be compared"
        if self.places:
            found = (
                f"{self.generated_db:.2f} dB against {self.linear_db:.2f} dB, closer at "
                f"{self.closer} of {self.acquired} places"
            )
        name = "Closer to the truth than linear interpolation"
        return Check(name if must_gain else "No worse than linear interpolation", ok, found)


def compare(received: Series, derived: Series, acquired: Series) -> Comparison:
    """The figures for each acquired slice between two received ones."""
    return Comparison(tuple(_compared_places(received, derived, acquired)), len(acquired))


def _compared_places(received: Series, derived: Series, acquired: Series) -> Iterator[Place]:
    for index, height in enumerate(acquired.heights_mm):
        made = derived.at(float(height))
        if made is None or received.at(float(height)) is not None:
            continue
        true = acquired.hounsfield(index)
        yield Place(
            height_mm=float(height),
            generated_db=psnr(derived.hounsfield(made), true),
            linear_db=psnr(linear(received, float(height)), true),
            true=true,
        )


def linear(received: Series, height_mm: float) -> Hounsfield:
    """What a viewer would show at that height: a blend of the two received neighbours."""
    below, above = neighbours(received, height_mm)
    start, end = received.heights_mm[below], received.heights_mm[above]
    share = (height_mm - start) / (end - start)
    blend: Hounsfield = (1.0 - share) * received.hounsfield(below) + share * received.hounsfield(
        above
    )
    return blend


def neighbours(received: Series, height_mm: float) -> tuple[int, int]:
    """The indices of the received slices below and above a height between them."""
    above = int(np.searchsorted(received.heights_mm, height_mm))
    return above - 1, above


def psnr(plane: Hounsfield, true: Hounsfield) -> float:
    """Peak signal-to-noise ratio in dB over the window; infinite for equal slices."""
    error = np.clip(plane, LEAST_HU, MOST_HU) - np.clip(true, LEAST_HU, MOST_HU)
    squared = float(np.mean(error**2))
    return float(10.0 * np.log10((MOST_HU - LEAST_HU) ** 2 / squared)) if squared else float("inf")

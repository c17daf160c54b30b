"""Is the derived series right? Asked of what the PACS holds, independently of the node's code."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset

from node.demo.series import Series

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

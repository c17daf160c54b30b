"""The series of a self-test: made, marked as such in every name, and easy to check.

Its densities rise evenly from slice to slice, so that what lies between two of them is known.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from node.dicom.scu import Outgoing

PATIENT_ID = "MIDSLICE-SELFTEST"
PATIENT_NAME = "SELFTEST^MIDSLICE"
DESCRIPTION = "MIDSLICE SELF-TEST, NOT A PATIENT"
SLICES, SPACING_MM = 6, 5.0
ROWS = COLUMNS = 96
BODY_HU, AIR_HU = 20.0, -1000.0
HU_PER_MM = 2.0
INTERCEPT = -1024


@dataclass(frozen=True)
class Phantom:
    """A made series on disk."""

    study_uid: str
    series_uid: str
    files: tuple[Outgoing, ...]


def series_uid() -> str:
    """A UID that no other series has: PS3.5 B.2."""
    return f"2.25.{uuid.uuid4().int}"


def make(folder: Path, uid: str, now: datetime) -> Phantom:
    """Write the series, one file a slice."""
    study, frame = series_uid(), series_uid()
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index in range(SLICES):
        instance = series_uid()
        path = folder / f"{index:02d}.dcm"
        data_set = _slice(index, study, uid, frame, instance, now)
        data_set.save_as(path, enforce_file_format=True)
        syntax = str(ExplicitVRLittleEndian)
        files.append(Outgoing(index, instance, str(CTImageStorage), syntax, path))
    return Phantom(study, uid, tuple(files))


def hounsfield(z_mm: float) -> NDArray[np.float64]:
    """(ROWS, COLUMNS): a round body in air whose density rises along z."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    radius = np.hypot(x - (COLUMNS - 1) / 2, y - (ROWS - 1) / 2) / (ROWS / 2)
    return np.where(radius < 0.7, BODY_HU + HU_PER_MM * z_mm, AIR_HU)


def _slice(
    index: int, study: str, series: str, frame: str, instance: str, now: datetime
) -> Dataset:
    z_mm = index * SPACING_MM
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = CTImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = UID(instance)
    made.SpecificCharacterSet = "ISO_IR 100"
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.SOPClassUID = CTImageStorage
    made.SOPInstanceUID = instance
    made.StudyInstanceUID, made.SeriesInstanceUID = study, series
    made.FrameOfReferenceUID = frame
    _name(made, now)
    made.SeriesNumber, made.InstanceNumber, made.AcquisitionNumber = 1, index + 1, 1
    made.ImagePositionPatient = [-(COLUMNS - 1) / 2, -(ROWS - 1) / 2, z_mm]
    made.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    made.PixelSpacing, made.SliceThickness = [1, 1], SPACING_MM
    made.PositionReferenceIndicator = ""
    made.KVP = 120
    stored = np.rint(hounsfield(z_mm) - INTERCEPT).astype("<u2")
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = ROWS, COLUMNS
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
    made.PixelRepresentation = 0
    made.RescaleIntercept, made.RescaleSlope, made.RescaleType = INTERCEPT, 1, "HU"
    made.PixelData = stored.tobytes()
    made["PixelData"].VR = "OW"
    return made


def _name(made: Dataset, now: datetime) -> None:
    """Nobody must take it for a patient: every text that a person sees says what it is."""
    made.PatientName, made.PatientID = PATIENT_NAME, PATIENT_ID
    made.PatientBirthDate, made.PatientSex = "", "O"
    made.StudyDescription = made.SeriesDescription = DESCRIPTION
    made.StudyID, made.AccessionNumber, made.ReferringPhysicianName = "SELFTEST", "", ""
    made.StudyDate = made.SeriesDate = made.ContentDate = now.strftime("%Y%m%d")
    made.StudyTime = made.SeriesTime = made.ContentTime = now.strftime("%H%M%S")
    made.Modality, made.Manufacturer = "CT", "Midslice"
    made.PatientPosition = "HFS"

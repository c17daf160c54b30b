"""Made patients to train on: small, with what moves from slice to slice and noise."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from inference.models.midslice import Network
from inference.training.checkpoint import Tensors
from inference.training.data import Patient
from inference.training.samples import Pool
from inference.training.train import Plan
from tests.models.stacks import made_geometry, made_plane

QUICK = Plan(steps=6, batch=2, side=32, pool=8, first=4, refresh=2, seed=5)


def made_hu(slices: int = 24, side: int = 64, noise_hu: float = 10.0) -> NDArray[np.int16]:
    geometry = made_geometry(slices, side, side, gaps_mm=1.0)
    planes = [made_plane(geometry, 3.0 * z, noise_hu=noise_hu, seed=z) for z in range(slices)]
    return np.rint(planes).astype(np.int16)


def write_npz(folder: Path, hu: NDArray[np.int16], spacing: tuple[float, float, float]) -> Path:
    folder.mkdir(parents=True)
    np.savez(folder / "volume.npz", hu=hu, spacing_mm=np.array(spacing))
    return folder


def write_dicom(
    folder: Path, hu: NDArray[np.int16], heights_mm: list[float], person: str = "made"
) -> None:
    """A series whose files are numbered against the order of their positions."""
    folder.mkdir(parents=True)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for index, (plane, height) in enumerate(zip(hu, heights_mm, strict=True)):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        path = folder / f"{len(hu) - index:03d}.dcm"
        ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID = CTImageStorage
        ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = series, study, frame
        ds.Modality, ds.PatientID, ds.PatientName = "CT", person, "Made^Body"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.InstanceNumber = index + 1
        ds.ImagePositionPatient = [0.0, 0.0, height]
        ds.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        ds.PixelSpacing, ds.SliceThickness = [0.7, 0.7], 1.0
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
        ds.Rows, ds.Columns = plane.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.PixelData = np.clip(plane + 1024, 0, 4095).astype("<u2").tobytes()
        ds.save_as(path, enforce_file_format=True)


def error_of(weights: Tensors, patients: tuple[Patient, ...]) -> float:
    """The mean absolute error on samples that training did not draw."""
    pool = Pool(patients, 30, np.random.default_rng(77))
    for _ in range(15):
        pool.refresh()
    batch = pool.batch(30, 64)
    network = Network()
    network.load_state_dict(dict(weights))
    with torch.inference_mode():
        made, _ = network(*map(torch.from_numpy, (batch.planes, batch.conditions, batch.cubic)))
    return float(np.abs(made.numpy() - batch.truth).mean())

"""Made MR series, and the real head that the demo sends."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from tests.phantoms import Edit, Series, dataset, save

HEAD = Path(__file__).parents[1] / "node" / "demo" / "data" / "mr-head"
OF_CT = (
    *("KVP", "ConvolutionKernel", "XRayTubeCurrent", "ExposureTime", "Exposure"),
    *("RescaleIntercept", "RescaleSlope", "RescaleType"),
)


def as_mr(made: Dataset) -> None:
    """A gradient echo in 3D, T1-weighted, without a rescale: its values are arbitrary."""
    for keyword in OF_CT:
        delattr(made, keyword)
    made.SOPClassUID, made.Modality = MRImageStorage, "MR"
    made.ImageType = ["ORIGINAL", "PRIMARY", "M", "NORM"]
    made.StudyDescription, made.SeriesDescription = "MR head", "t1_mprage_sag"
    made.BodyPartExamined, made.ProtocolName = "HEAD", "t1_mprage"
    made.ScanningSequence, made.SequenceVariant = ["GR", "IR"], ["SK", "SP", "MP"]
    made.ScanOptions, made.MRAcquisitionType = "IR", "3D"
    made.RepetitionTime, made.EchoTime, made.InversionTime = "1900", "2.52", "900"
    made.EchoTrainLength, made.FlipAngle, made.MagneticFieldStrength = "1", "9", "3"


def write(folder: Path, edit: Edit | None = None, series: Series | None = None) -> list[Path]:
    """One file a slice, in the order of positions; `edit` has the last word."""
    series = series or Series(slices=6, spacing_mm=2.0, thickness_mm=2.0)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(len(series.places_mm)):
        made = dataset(series, index)
        as_mr(made)
        if edit is not None:
            edit(made, index)
        paths.append(folder / f"{index:04d}.dcm")
        save(paths[-1], made)
    return paths


def setting(**values: object) -> Edit:
    """An edit that gives every slice these attributes."""

    def edit(made: Dataset, index: int) -> None:
        for keyword, value in values.items():
            setattr(made, keyword, value(index) if isinstance(value, Callable) else value)

    return edit


def ball(shape: tuple[int, ...], radius: float = 0.6) -> NDArray[np.bool_]:
    """An ellipsoid in the middle of a volume: a mask with empty slices at both ends."""
    axes = [np.linspace(-1.0, 1.0, side) for side in shape]
    squares = np.meshgrid(*(axis**2 for axis in axes), indexing="ij")
    return np.asarray(sum(squares) < radius**2)

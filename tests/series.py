"""The real CT series that is shipped with the demonstration, whole, in part, native or changed."""

from collections.abc import Callable
from pathlib import Path

from pydicom import Dataset, dcmread

from tests import phantoms

RECEIVED = Path(__file__).parents[1] / "node" / "demo" / "data" / "received"
SERIES_UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192"


def thick(slices: int = 6) -> list[Path]:
    """The first slices of a chest CT, 5 mm apart, JPEG-LS, shuffled as a router may send them."""
    files = sorted(RECEIVED.glob("*.dcm"))[:slices]
    return files[1::2] + files[::2]


def long(slices: int, folder: Path) -> list[Path]:
    """The same chest up and down again until it has so many slices; neighbours stay neighbours."""
    order = sorted(
        RECEIVED.glob("*.dcm"),
        key=lambda path: float(dcmread(path, stop_before_pixels=True).ImagePositionPatient[2]),
    )
    there_and_back = [*range(len(order)), *range(len(order) - 2, 0, -1)]
    first, second = (dcmread(path).ImagePositionPatient for path in order[:2])
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(slices):
        dataset = dcmread(order[there_and_back[number % len(there_and_back)]])
        dataset.InstanceNumber = number + 1
        dataset.SOPInstanceUID = f"2.25.7{number:06d}"
        dataset.FrameOfReferenceUID = "2.25.7"  # of each slice its own would part them
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.ImagePositionPatient = [
            a + number * (b - a) for a, b in zip(first, second, strict=True)
        ]
        dataset.SliceLocation = dataset.ImagePositionPatient[2]
        made.append(folder / f"{number:05d}.dcm")
        dataset.save_as(made[-1])
    return made


def changed(files: list[Path], folder: Path, change: Callable[[Dataset], None]) -> list[Path]:
    """Copies of the files, each with a change to its data set."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for file in files:
        dataset = dcmread(file)
        change(dataset)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(folder / file.name)
        made.append(folder / file.name)
    return made


def native(files: list[Path], folder: Path) -> list[Path]:
    """Copies of the files as Explicit VR Little Endian: other bytes, the same pixels."""
    return changed(files, folder, lambda dataset: dataset.decompress(generate_instance_uid=False))


def compressed(files: list[Path], folder: Path, syntax: str) -> list[Path]:
    """Copies of the files in another transfer syntax without loss: other bytes, the same pixels."""

    def encode(dataset: Dataset) -> None:
        dataset.decompress(generate_instance_uid=False)
        phantoms.compress(dataset, syntax)

    return changed(files, folder, encode)

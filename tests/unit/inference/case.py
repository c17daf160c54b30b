"""What a case is, and how its series is made; the `cases*.py` list them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom.dataset import Dataset

from inference.errors import Reason
from inference.model import Parameters
from inference.request import ModelSpec, Output, Request
from tests import phantoms
from tests.phantoms import Edit, Pixels, Series

Write = Callable[[Path], list[Path]]
IN_TURN = (
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "RescaleSlope",
    "RescaleIntercept",
    "PixelPaddingValue",
    "PixelData",
)
HOLE = Series(slices=8, spacing_mm=2.0, thickness_mm=2, missing=[3])
MR, SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
WITHOUT_DECODER = "1.2.840.10008.1.2.4.53"


@dataclass(frozen=True)
class Case:
    """One kind of series. `reason` is None where it is processed; `said` is in sentence or note."""

    section: str
    title: str
    does: str
    given: Series | Write
    reason: Reason | None = None
    said: str = ""
    aside: Reason | None = None  # of the instances that are left out
    stacks: int = 1
    closed_gaps: Sequence[int] = ()
    ask: Callable[[Request], Request] | None = None
    seen: Callable[[Dataset], bool] | None = None  # true of each derived instance

    def write(self, folder: Path) -> list[Path]:
        given = self.given
        return phantoms.write(folder, given) if isinstance(given, Series) else given(folder)


def assign(**values: object) -> Edit:
    """The same values in every slice."""
    return only(lambda _: True, **values)


def only(chosen: Callable[[int], bool], **values: object) -> Edit:
    """Values in the slices whose index is chosen."""

    def edit(made: Dataset, index: int) -> None:
        for keyword, value in values.items():
            if chosen(index):
                setattr(made, keyword, value)

    return edit


def each(keyword: str, value: Callable[[int], object]) -> Edit:
    """A value of its own in every slice."""
    return lambda made, index: setattr(made, keyword, value(index))


def remove(*keywords: str) -> Edit:
    def edit(made: Dataset, _: int) -> None:
        for keyword in keywords:
            del made[keyword]

    return edit


def altered(**values: object) -> Series:
    return Series(edit=assign(**values))


def lacking(*keywords: str) -> Series:
    return Series(edit=remove(*keywords))


def output(**values: object) -> Callable[[Request], Request]:
    return lambda made: replace(made, output=Output(**values))  # type: ignore[arg-type]


def target(spacing_mm: float) -> Callable[[Request], Request]:
    parameters = Parameters(target_spacing_mm=spacing_mm)
    return lambda made: replace(made, model=ModelSpec("linear"), parameters=parameters)


def together(*series: Series) -> Write:
    """Several made series of one Study and Series UID."""

    def write(folder: Path) -> list[Path]:
        files = []
        for place, each_of in enumerate(series):
            files += phantoms.write(folder / str(place), each_of)
        return files

    return write


def broken(damage: Callable[[Path], None], series: Series | None = None) -> Write:
    """A series whose third file is damaged."""

    def write(folder: Path) -> list[Path]:
        files = phantoms.write(folder, series or Series())
        damage(files[2])
        return files

    return write


def cut_header(path: Path) -> None:
    """The transfer ended before Image Orientation (Patient)."""
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\x20\x00\x37\x00DS")])


def cut_stream(path: Path) -> None:
    made = phantoms.pydicom_read(path)
    phantoms.truncated_stream(made, len(made.PixelData) * 2 // 3)
    made.save_as(path)


def code(value: str) -> object:
    return phantoms.sequence(phantoms.code_item(value, "DCM", "x"))


def shuffled(made: Dataset, index: int) -> None:
    made.InstanceNumber = [4, 9, 1, 7, 2, 30][index]
    made.SliceLocation = str(-7 * index)


def phases(made: Dataset, index: int) -> None:
    """Two acquisitions of the same six places, their numbers in no order."""
    made.AcquisitionNumber = index // 6
    made.InstanceNumber = [7, 2, 12, 4, 9, 1, 3, 11, 5, 8, 10, 6][index]
    made.ImagePositionPatient = [0, 0, 5 * (index % 6)]


def beats(made: Dataset, index: int) -> None:
    made.ImagePositionPatient = [0, 0, 5 * (index % 6)]
    made.NominalPercentageOfCardiacPhase = (30, 70)[index // 6]
    made.TriggerTime = str((270, 630)[index // 6] + (0, 4, -3)[index % 6 // 2])


def timed_passes(made: Dataset, index: int) -> None:
    made.ImagePositionPatient = [0, 0, 5 * (index % 6)]
    made.AcquisitionTime = f"10{10 + index // 6}{index % 6:02d}"


def adjoining(made: Dataset, index: int) -> None:
    """Two acquisitions of eight slices; the second begins where the first has its last two."""
    made.AcquisitionNumber = 1 + index // 8
    made.ImagePositionPatient = [0, 0, 5 * (index - 2 * (index // 8))]


def noise(made: Dataset, index: int) -> None:
    off = 0.0004 * (-1) ** index
    made.ImageOrientationPatient = [1, off, 0, -off, 1, 0]
    made.PixelSpacing = [f"{0.8 + off / 10:.5f}", "0.8"]


def phases_by(keyword: str, values: Sequence[object]) -> Edit:
    """Two whole phases of the same places that one attribute alone tells apart."""

    def edit(made: Dataset, index: int) -> None:
        phases(made, index)
        made.AcquisitionNumber = 1
        setattr(made, keyword, values[index // 6])

    return edit


def turns(keyword: str, values: Sequence[object]) -> Edit:
    """Every other slice is of the other acquisition; Instance Numbers say nothing of it."""

    def edit(made: Dataset, index: int) -> None:
        setattr(made, keyword, values[index % 2])
        made.InstanceNumber = [7, 2, 12, 4, 9, 1, 3, 11, 5, 8, 10, 6][index]

    return edit


def ends_take_turns(index: int) -> str:
    """Times of one acquisition, then of two in turn, then of the second alone."""
    is_second = index > 10 or (index > 4 and index % 2 == 1)
    return f"10{15 if is_second else 13:02d}{index:02d}"


def crooked(made: Dataset, index: int) -> None:
    made.FrameOfReferenceUID = f"1.2.3.{index + 1}"
    made.ImagePositionPatient = [2 * (index % 2), 0, 5 * index]


def mixed_orientations(made: Dataset, index: int) -> None:
    if index >= 3:
        made.ImageOrientationPatient = [1, 0, 0, 0, 0.8, 0.6]


def one_odd(made: Dataset, index: int) -> None:
    if index == 5:
        made.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def junk_above_high_bit(made: Dataset, _: int) -> None:
    values = bytearray(made.PixelData)
    values[1::2] = bytes(value | 0xA0 for value in values[1::2])
    made.PixelData = bytes(values)


def own_rescale(made: Dataset, index: int) -> None:
    pixels = Pixels(slope=1.0 + index, intercept=-1024.0 - 3 * index)
    made.RescaleSlope, made.RescaleIntercept = str(1 + index), str(-1024 - 3 * index)
    made.PixelData = phantoms.raw_pixels(phantoms.stored(Series(pixels=pixels), index), 16)


def narrow_rescale(made: Dataset, index: int) -> None:
    """Slopes of 0.25, 1 and 4 in 12 bits: the finest one has no room for bone."""
    slope = 4.0**index / 4.0
    pixels = Pixels(bits=12, is_signed=False, slope=slope, intercept=-300.0 * index)
    made.RescaleSlope, made.RescaleIntercept = f"{slope:g}", str(-300 * index)
    made.PixelData = phantoms.raw_pixels(phantoms.stored(Series(pixels=pixels), index), 16)


def in_turn(*formats: Pixels) -> Edit:
    """Each slice in another pixel format, by turns."""

    def edit(made: Dataset, index: int) -> None:
        pixels = formats[index % len(formats)]
        other = phantoms.dataset(Series(pixels=pixels), index)
        for keyword in IN_TURN:
            if keyword in other:
                made[keyword] = other[keyword]
            elif keyword in made:
                del made[keyword]

    return edit


def twice(chosen: Callable[[int], bool]) -> Write:
    """A series of which some images came again under another SOP Instance UID."""

    def write(folder: Path) -> list[Path]:
        files = phantoms.write(folder / "once")
        renamed = Series(edit=each("SOPInstanceUID", "1.2.{}".format))
        again = phantoms.write(folder / "again", renamed)
        return [*files, *(path for index, path in enumerate(again) if chosen(index))]

    return write


def unframed_and_crooked(made: Dataset, index: int) -> None:
    crooked(made, index)
    del made.FrameOfReferenceUID


def is_padded(value: int) -> Callable[[Dataset], bool]:
    return lambda made: made.pixel_array[0, 0] == value


def undeclared(value: int) -> Series:
    return Series(pixels=Pixels(intercept=0.0, padding=value), edit=remove("PixelPaddingValue"))


GROUPS, PLACES, VALUES = "Grouping", "Geometry", "Pixels"
KINDS, DAMAGE = "Kinds of images", "Damaged data"

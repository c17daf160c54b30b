"""The derived series, as other people's validators and readers and our second checker see it."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless

from inference.request import Output
from tests import phantoms, validators
from tests.phantoms import Patient, Pixels, Series
from tests.unit.inference.made import derive, derive_series, read, request

REAL = Path("node/demo/data/received")


def test_no_validator_says_anything_against_a_conformant_series(tmp_path: Path) -> None:
    sources = phantoms.write(tmp_path / "received")
    derived = derive(request(sources, tmp_path / "derived", factor=4))
    assert [line for path in sources for line in validators.dciodvfy(path)] == []
    assert validators.new_complaints(sources, derived) == []


def test_a_real_series_gains_no_error_and_is_read_as_one_regular_volume(tmp_path: Path) -> None:
    sources = sorted(REAL.glob("*.dcm"))[:5]
    derived = derive(request(sources, tmp_path / "derived", factor=4))
    assert validators.new_complaints(sources, derived) == []
    shape, spacing = validators.highdicom_volume(derived)
    assert shape == (17, 512, 512)
    assert spacing == pytest.approx((1.25, 0.703125, 0.703125))
    ((shape, spacing),) = validators.dcm2niix(tmp_path / "derived", tmp_path / "nii")
    assert shape == (512, 512, 17)
    assert spacing == pytest.approx((0.703125, 0.703125, 1.25))


@pytest.mark.parametrize("factor", [2, 3, 7, 10])
def test_every_factor_gives_equal_spacing(tmp_path: Path, factor: int) -> None:
    made = read(derive_series(tmp_path, Series(slices=4), factor))
    assert len(made) == 3 * factor + 1
    gaps = np.diff([float(slice_.ImagePositionPatient[2]) for slice_ in made])
    assert gaps == pytest.approx(np.full(3 * factor, 5.0 / factor), abs=1e-9)
    (spacing,) = {float(slice_.SpacingBetweenSlices) for slice_ in made}
    assert spacing == pytest.approx(5.0 / factor)
    assert all(len(text) <= 16 for slice_ in made for text in map(str, slice_.ImagePositionPatient))


def test_generated_slices_say_so_and_copies_say_that(tmp_path: Path) -> None:
    made = read(derive_series(tmp_path, Series(slices=3)))
    assert [slice_.SyntheticData for slice_ in made] == ["NO", "YES", "NO", "YES", "NO"]
    generated, copied = made[1], made[2]
    assert generated.DerivationDescription == (
        "AI-synthesised slice at 0.5 of the gap between 2 source slices (model halfway 0.1); "
        "not acquired"
    )
    assert copied.DerivationDescription == "Pixel data copied unchanged from source slice"
    assert "not acquired" in generated.ImageComments
    assert "Received slice, unchanged" in copied.ImageComments
    equipment = generated.ContributingEquipmentSequence
    assert [item.Manufacturer for item in equipment] == ["Maker of Phantoms", "Midslice"]
    assert equipment[0].DeviceSerialNumber == "4711"


def test_dose_and_private_attributes_are_left_behind(tmp_path: Path) -> None:
    def edit(made: Dataset, _: int) -> None:
        made.CTDIvol = 7.5
        made.ImagesInAcquisition = 6
        made.private_block(0x0019, "MAKER", create=True).add_new(1, "LO", "secret")
        made.ReferencedPerformedProcedureStepSequence = phantoms.sequence(Dataset())

    for slice_ in read(derive_series(tmp_path, Series(slices=2, edit=edit))):
        for keyword in ("CTDIvol", "ImagesInAcquisition", "Exposure", "XRayTubeCurrent"):
            assert keyword not in slice_
        assert "ReferencedPerformedProcedureStepSequence" not in slice_
        assert not [element for element in slice_ if element.tag.is_private]


def test_instance_numbers_keep_the_scanners_direction(tmp_path: Path) -> None:
    made = read(derive_series(tmp_path, Series(slices=3, descending=True)))
    assert [int(slice_.InstanceNumber) for slice_ in made] == [5, 4, 3, 2, 1]


def test_generated_slices_alone_can_be_asked_for(tmp_path: Path) -> None:
    sources = phantoms.write(tmp_path / "received", Series(slices=3))
    output = Output(include_received=False)
    made = read(derive(request(sources, tmp_path / "derived", factor=3, output=output)))
    assert [slice_.SyntheticData for slice_ in made] == ["YES"] * 4
    assert "SpacingBetweenSlices" not in made[0]


def test_slice_thickness_stays_unless_the_route_asks_for_the_spacing(tmp_path: Path) -> None:
    sources = phantoms.write(tmp_path / "received", Series(slices=2))
    usual = read(derive(request(sources, tmp_path / "usual")))
    spaced = Output(slice_thickness="spacing")
    other = read(derive(request(sources, tmp_path / "other", output=spaced)))
    assert {slice_.SliceThickness for slice_ in usual} == {5}
    assert {slice_.SliceThickness for slice_ in other} == {2.5}


@pytest.mark.parametrize(
    ("character_set", "name", "description"),
    [
        (["", "ISO 2022 IR 87"], b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", b"Thorax"),
        (["", "ISO 2022 IR 149"], b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce", b"Thorax"),
        ("GB18030", "王^小东".encode("gb18030"), "胸部 平扫".encode("gb18030")),
        ("ISO_IR 192", "Äneas^Müßig".encode(), "Thörax nativ, dünne Schichten".encode()),
        ("ISO_IR 100", "Müller^Jörg".encode("latin-1"), "Schädel".encode("latin-1")),
        ("ISO_IR 126", "Διονυσιος".encode("iso8859-7"), b"Thorax"),
        (None, "Müller".encode("latin-1"), "Schädel".encode("latin-1")),
    ],
)
def test_text_keeps_its_bytes_in_every_character_set(
    tmp_path: Path, character_set: str | list[str] | None, name: bytes, description: bytes
) -> None:
    series = Series(
        slices=2,
        patient=Patient(name=name),
        character_set=character_set,
        description=description,
    )
    path = derive_series(tmp_path, series)[0]
    data = path.read_bytes()
    assert name in data
    is_readable = character_set is not None or description.isascii()
    assert (description in data) == is_readable


def test_a_long_description_is_cut_by_characters_behind_the_marker(tmp_path: Path) -> None:
    text = "胸部" * 20
    series = Series(slices=2, character_set="GB18030", description=text.encode("gb18030"))
    made = pydicom.dcmread(derive_series(tmp_path, series)[0])
    whole = "AI-INTERP x2 1 of 3 NOT ACQUIRED | " + text
    assert made.SeriesDescription in (whole[:64], whole[:63])  # 64 with the space that pads it


def test_an_undecodable_description_leaves_the_marker_alone(tmp_path: Path) -> None:
    series = Series(slices=2, character_set="ISO_IR 192", description=b"Sch\xe4del")
    made = pydicom.dcmread(derive_series(tmp_path, series)[0])
    assert made.SeriesDescription == "AI-INTERP x2 1 of 3 NOT ACQUIRED"


def test_our_times_are_in_the_zone_that_the_header_declares(tmp_path: Path) -> None:
    def edit(made: Dataset, _: int) -> None:
        made.TimezoneOffsetFromUTC = "-0830"

    made = pydicom.dcmread(derive_series(tmp_path, Series(slices=2, edit=edit))[0])
    assert (made.SeriesDate, made.SeriesTime) == ("20250303", "203607.890000")
    assert made.TimezoneOffsetFromUTC == "-0830"
    assert made.StudyTime == "101112.5"


def test_lossy_sources_mark_every_instance_as_lossy(tmp_path: Path) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.LossyImageCompression = "01" if index == 1 else "00"

    made = read(derive_series(tmp_path, Series(slices=3, edit=edit)))
    assert {slice_.LossyImageCompression for slice_ in made} == {"01"}


def test_attributes_that_vary_are_empty_or_absent(tmp_path: Path) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.AcquisitionNumber = index + 1
        made.TableHeight = str(100 + index)

    made = read(derive_series(tmp_path, Series(slices=3, edit=edit)))
    assert {slice_.AcquisitionNumber for slice_ in made} == {None}
    assert all("TableHeight" not in slice_ for slice_ in made)


def test_earlier_equipment_is_carried_over(tmp_path: Path) -> None:
    def edit(made: Dataset, _: int) -> None:
        item = Dataset()
        item.Manufacturer = "Recon Ltd"
        item.PurposeOfReferenceCodeSequence = phantoms.sequence(
            phantoms.code_item("109102", "DCM", "Processing Equipment")
        )
        made.ContributingEquipmentSequence = phantoms.sequence(item)

    made = pydicom.dcmread(derive_series(tmp_path, Series(slices=2, edit=edit))[0])
    assert [item.Manufacturer for item in made.ContributingEquipmentSequence] == [
        "Maker of Phantoms",
        "Recon Ltd",
        "Midslice",
    ]


def test_slice_location_keeps_the_scanners_law(tmp_path: Path) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.SliceLocation = f"{100 - 5 * index}"

    made = read(derive_series(tmp_path, Series(slices=3, edit=edit)))
    assert [float(slice_.SliceLocation) for slice_ in made] == pytest.approx(
        [100, 97.5, 95, 92.5, 90]
    )


def test_slice_location_is_omitted_where_the_source_has_none(tmp_path: Path) -> None:
    def edit(made: Dataset, _: int) -> None:
        del made.SliceLocation

    made = read(derive_series(tmp_path, Series(slices=2, edit=edit)))
    assert all("SliceLocation" not in slice_ for slice_ in made)


def test_numbers_that_are_too_long_are_written_right_and_other_invalid_values_dropped(
    tmp_path: Path,
) -> None:
    def edit(made: Dataset, _: int) -> None:
        for keyword, value in {
            "PixelSpacing": b"0.800000000000000001\\0.8 ",
            "RescaleSlope": b"1.00000000000000022",
            "ReconstructionDiameter": b"five hundred",
            "AcquisitionDate": b"5 March 2024",
        }.items():
            phantoms.put(made, keyword, value)

    sources = phantoms.write(tmp_path / "received", Series(slices=2, edit=edit))
    derived = derive(request(sources, tmp_path / "derived"))
    made = pydicom.dcmread(derived[0])
    assert made.PixelSpacing == [0.8, 0.8]
    assert made.RescaleSlope == 1
    assert "ReconstructionDiameter" not in made
    assert "AcquisitionDate" not in made
    assert validators.dciodvfy(derived[0]) == []


def _rich(made: Dataset, _: int) -> None:
    """What a hospital's header holds beyond the necessary."""
    made.TimezoneOffsetFromUTC = "+0100"
    made.IssuerOfPatientID = "Hospital"
    made.PatientWeight, made.PatientSize = "70.5", "1.75"
    made.PatientComments = "none"
    made.AdditionalPatientHistory = "cough"
    made.PatientIdentityRemoved, made.DeidentificationMethod = "YES", "by hand"
    made.ProcedureCodeSequence = phantoms.sequence(
        phantoms.code_item("77477000", "SCT", "Computed tomography")
    )
    request_item = Dataset()
    request_item.RequestedProcedureID = "RP1"
    request_item.ScheduledProcedureStepID = "SPS1"
    made.RequestAttributesSequence = phantoms.sequence(request_item)
    made.ContrastBolusAgent = "Contrast"
    made.ContrastBolusVolume = "80"
    made.GantryDetectorTilt = "0"
    made.TableHeight, made.RotationDirection = "150", "CW"
    made.DataCollectionDiameter = made.ReconstructionDiameter = "500"
    made.FilterType = "WEDGE"
    made.IrradiationEventUID = "1.2.3.4"
    made.AcquisitionDateTime = "20240305101300"
    made.LossyImageCompression = "00"
    made.BurnedInAnnotation = "NO"
    made.WindowCenter, made.WindowWidth = ["40", "-600"], ["400", "1600"]
    made.WindowCenterWidthExplanation = ["SOFT", "LUNG"]


@pytest.mark.parametrize(
    "series",
    [
        Series(slices=2, edit=_rich),
        Series(slices=3, tilt_degrees=-18.5, descending=True),
        Series(gaps_mm=[2.0, 2.0, 5.0, 5.0], thickness_mm=5.0),
        Series(slices=2, pixels=Pixels(bits=12, is_signed=False, padding=0)),
        Series(slices=2, pixels=Pixels(bits=16, is_signed=True, padding=-2000)),
        Series(
            slices=2,
            transfer_syntax=JPEGLSLossless,
            patient=Patient(name="王^小东"),
            character_set="GB18030",
        ),
        Series(slices=2, thickness_mm=None),
    ],
)
def test_no_validator_says_anything_against_variants_of_it(tmp_path: Path, series: Series) -> None:
    sources = phantoms.write(tmp_path / "received", series)
    derived = derive(request(sources, tmp_path / "derived"))
    assert [line for path in sources for line in validators.dciodvfy(path)] == []
    assert validators.new_complaints(sources, derived) == []


def test_the_orders_and_the_contrast_of_the_source_are_kept(tmp_path: Path) -> None:
    made = read(derive_series(tmp_path, Series(slices=2, edit=_rich)))[1]
    assert made.RequestAttributesSequence[0].RequestedProcedureID == "RP1"
    assert made.ProcedureCodeSequence[0].CodeMeaning == "Computed tomography"
    assert made.ContrastBolusAgent == "Contrast"
    assert made.IrradiationEventUID == "1.2.3.4"
    assert list(made.WindowCenterWidthExplanation) == ["SOFT", "LUNG"]


@pytest.mark.parametrize(
    ("center", "width"), [(["40"], ["0.5"]), (["40", "50"], ["400"]), (["40"], [])]
)
def test_a_window_that_is_none_is_left_out(
    tmp_path: Path, center: list[str], width: list[str]
) -> None:
    def edit(made: Dataset, _: int) -> None:
        made.WindowCenter, made.WindowWidth = center, width

    made = read(derive_series(tmp_path, Series(slices=2, edit=edit)))[0]
    assert "WindowCenter" not in made
    assert "WindowWidth" not in made

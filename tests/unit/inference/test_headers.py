"""What hospitals write into headers: character sets, numbers, times, and what they leave out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from inference import header as h
from inference.dataset import read_header
from inference.errors import Reason
from inference.request import Derived
from inference.scope import instance_fault
from tests import phantoms, validators
from tests.phantoms import Patient, Series
from tests.unit.inference.made import derive, derive_series, request, run

Put = Callable[[Dataset, int], None]
SMALL = Series(slices=2, rows=8, columns=8)
TEXTS = (
    "PatientName",
    "StudyDescription",
    "SeriesDescription",
    "ReferringPhysicianName",
    "InstitutionName",
    "ProtocolName",
)


def putting(values: dict[str, bytes]) -> Put:
    """Bytes as they are, valid or not."""

    def edit(made: Dataset, _: int) -> None:
        for keyword, value in values.items():
            phantoms.put(made, keyword, value)

    return edit


def raw(path: Path, keyword: str) -> bytes:
    """The value in the file, without its padding."""
    made = dcmread(path, stop_before_pixels=True)
    element = made.get_item(keyword)
    assert isinstance(element.value, bytes)
    return element.value.rstrip(b" \0")


def notes(outcome: object) -> str:
    assert isinstance(outcome, Derived), outcome
    return str(outcome.record["notes"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (["", "ISO 2022 IR 87"], b"\x1b$B;3ED\x1b(B"),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], b"\xd4\xcf\xc0\xde \x1b$B;3ED\x1b(J"),
        (["", "ISO 2022 IR 149"], b"\x1b$)C\xfb\xf3 \xd1\xce"),
        ("GB18030", "王小东".encode("gb18030")),
        ("GB18030", b"\x81\x5c\x95\x5c"),  # second bytes that look like the separator
        ("GBK", "昞".encode("gbk")),
        ("ISO_IR 192", "Grüße 王 山田".encode()),
        ("ISO_IR 100", "Müller".encode("latin-1")),
        ("ISO_IR 13", "ﾔﾏﾀﾞ".encode("shift_jis")),
        ("ISO_IR 144", "Иванов".encode("iso8859-5")),
    ],
)
def test_text_that_fits_its_character_set_keeps_its_bytes_everywhere(
    tmp_path: Path, declared: str | Sequence[str], value: bytes
) -> None:
    edit = putting(dict.fromkeys(TEXTS, value))
    series = replace(SMALL, character_set=declared, edit=edit)
    made = request(phantoms.write(tmp_path / "received", series), tmp_path / "derived")
    outcome = run(made)
    assert "character set" not in notes(outcome)
    for path in made.folder.iterdir():
        assert raw(path, "SeriesDescription") == b"AI-INTERP x2 1 of 3 NOT ACQUIRED | " + value
        for keyword in set(TEXTS) - {"SeriesDescription"}:
            assert raw(path, keyword) == value, keyword
        assert dcmread(path).SpecificCharacterSet == declared


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (None, "Müller".encode("latin-1")),  # none declared
        ("ISO_IR 192", "Müller".encode("latin-1")),  # another one
        ("ISO_IR 6", "王".encode("gb18030")),
        (["", "ISO 2022 IR 87"], "山田".encode("shift_jis")),
        ("NO SUCH SET", b"M\xfcller"),
    ],
)
def test_text_that_does_not_fit_is_kept_of_the_patient_left_out_elsewhere_and_noted(
    tmp_path: Path, declared: str | Sequence[str] | None, value: bytes
) -> None:
    edit = putting(dict.fromkeys(TEXTS, value))
    series = replace(SMALL, character_set=declared, edit=edit)
    made = request(phantoms.write(tmp_path / "received", series), tmp_path / "derived")
    assert "outside the declared character set in InstitutionName, PatientName" in notes(run(made))
    for path in made.folder.iterdir():
        assert raw(path, "PatientName") == raw(path, "StudyDescription") == value
        assert raw(path, "SeriesDescription") == b"AI-INTERP x2 1 of 3 NOT ACQUIRED"
        assert "InstitutionName" not in dcmread(path)


@pytest.mark.parametrize(
    ("declared", "codec"),
    [(["", "ISO 2022 IR 87"], "iso2022_jp"), ("GB18030", "gb18030"), ("ISO_IR 192", "utf-8")],
)
def test_a_cut_description_still_ends_in_whole_characters(
    tmp_path: Path, declared: str | Sequence[str], codec: str
) -> None:
    text = "胸部単純" * 20
    series = replace(SMALL, character_set=declared, description=text.encode(codec))
    made = dcmread(derive_series(tmp_path, series)[0])
    whole = "AI-INTERP x2 1 of 3 NOT ACQUIRED | " + text
    assert made.SeriesDescription in (whole[:64], whole[:63])  # 64 with the space that pads it


def test_a_slice_in_another_character_set_lends_no_text_that_the_first_cannot_mean(
    tmp_path: Path,
) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.SpecificCharacterSet = "ISO_IR 192" if index else "ISO_IR 100"
        made.ContrastBolusAgent = "Ultravist"
        phantoms.put(made, "InstitutionName", "Köln".encode("utf-8" if index else "latin-1"))

    for path in derive_series(tmp_path, replace(SMALL, slices=3, edit=edit)):
        made = dcmread(path)
        assert made.InstitutionName == "Köln"
        assert made.ContributingEquipmentSequence[0].get("InstitutionName", "Köln") == "Köln"
        assert made.ContrastBolusAgent == "Ultravist"


def test_earlier_equipment_keeps_its_name_in_the_character_set_around_it(tmp_path: Path) -> None:
    def edit(made: Dataset, _: int) -> None:
        item = Dataset()
        item.Manufacturer = "Röntgen Müller"
        item.PurposeOfReferenceCodeSequence = phantoms.sequence(
            phantoms.code_item("109102", "DCM", "Processing Equipment")
        )
        made.ContributingEquipmentSequence = phantoms.sequence(item)

    sources = phantoms.write(tmp_path / "received", replace(SMALL, edit=edit))
    derived = derive(request(sources, tmp_path / "derived"))
    equipment = dcmread(derived[0]).ContributingEquipmentSequence
    assert equipment[1].Manufacturer == "Röntgen Müller"
    assert validators.new_complaints(sources, derived) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("SliceThickness", b"5.0000000000000001"),
        ("SliceThickness", b" +05.0 "),
        ("PixelSpacing", b"8.0000E-01\\0.80000000000000004"),
        ("ImagePositionPatient", b"-0150.00000\\-1.2E+2\\006.757812E-01"),
        ("RescaleSlope", b"1.0000000000000000"),
        ("RescaleIntercept", b"-1024 "),
    ],
)
def test_odd_decimal_strings_are_numbers_and_never_longer_than_allowed(
    tmp_path: Path, keyword: str, value: bytes
) -> None:
    def edit(made: Dataset, index: int) -> None:
        if index == 0 or keyword != "ImagePositionPatient":
            phantoms.put(made, keyword, value)
        else:
            made.ImagePositionPatient = [-150, -120, 5.6757812]

    files = derive_series(tmp_path, replace(SMALL, edit=edit))
    for path in files:
        parts = raw(path, keyword).split(b"\\")
        assert all(len(part.strip()) <= 16 for part in parts)
        expected = value.split(b"\\")
        if keyword != "ImagePositionPatient":
            assert [float(part) for part in parts] == pytest.approx([float(x) for x in expected])
    if all(len(part.strip()) <= 16 for part in value.split(b"\\")):
        assert raw(files[0], keyword) == value.rstrip()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ("+0000", ("20250304", "050607.890000")),
        ("+0530", ("20250304", "103607.890000")),
        ("-1200", ("20250303", "170607.890000")),
        ("+1400", ("20250304", "190607.890000")),
        ("", ("20250304", "050607.890000")),
        ("nonsense", ("20250304", "050607.890000")),
        ("+9999", ("20250304", "050607.890000")),
    ],
)
def test_our_times_are_in_the_declared_zone_or_in_that_of_the_node(
    tmp_path: Path, offset: str, expected: tuple[str, str]
) -> None:
    edit = putting({"TimezoneOffsetFromUTC": offset.encode()})
    made = dcmread(derive_series(tmp_path, replace(SMALL, edit=edit))[1])
    for date, time in (("SeriesDate", "SeriesTime"), ("ContentDate", "ContentTime")):
        assert (made[date].value, made[time].value) == expected
    assert (made.StudyDate, made.StudyTime) == ("20240305", "101112.5")
    when = made.ContributingEquipmentSequence[-1].ContributionDateTime
    assert when.startswith("".join(expected))
    if offset.lstrip("+-").isdigit() and offset != "+9999":
        assert when.endswith(offset)


OPTIONAL = """
    PatientName PatientID PatientBirthDate PatientSex PatientAge StudyDate StudyTime StudyID
    AccessionNumber ReferringPhysicianName StudyDescription SeriesDescription SeriesNumber
    SeriesDate SeriesTime BodyPartExamined PatientPosition ProtocolName Manufacturer
    ManufacturerModelName StationName InstitutionName SoftwareVersions AcquisitionNumber
    AcquisitionDate AcquisitionTime InstanceNumber KVP ConvolutionKernel SliceThickness
    SliceLocation WindowCenter WindowWidth RescaleType PositionReferenceIndicator ImageType
    """.split()  # noqa: SIM905


@pytest.mark.parametrize("keyword", OPTIONAL)
def test_any_attribute_may_be_absent_or_empty(tmp_path: Path, keyword: str) -> None:
    def absent(made: Dataset, _: int) -> None:
        del made[keyword]

    for name, edit in (("absent", absent), ("empty", putting({keyword: b""}))):
        files = phantoms.write(tmp_path / name, replace(SMALL, edit=edit))
        assert len(derive(request(files, tmp_path / f"derived-{name}"))) == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("SeriesNumber", b"99999999999999"),
        ("SeriesNumber", b"-5"),
        ("SeriesNumber", b"three"),
        ("InstanceNumber", b"one"),
        ("KVP", b"high"),
        ("WindowCenter", b"40\\"),
        ("WindowWidth", b"-1"),
        ("AcquisitionTime", b"25:61"),
        ("PatientAge", b"55Y"),
        ("PatientSex", b"male"),
        ("PatientBirthDate", b"1.1.1960"),
        ("BodyPartExamined", b"chest, abdomen and pelvis with contrast"),
        ("SliceThickness", b"thick"),
        ("SliceLocation", b"NaN"),
        ("GantryDetectorTilt", b"INF"),
    ],
)
def test_invalid_values_cost_no_more_than_themselves(
    tmp_path: Path, keyword: str, value: bytes
) -> None:
    series = replace(SMALL, edit=putting({keyword: value}))
    sources = phantoms.write(tmp_path / "received", series)
    derived = derive(request(sources, tmp_path / "derived"))
    assert validators.new_complaints(sources, derived) == []


def test_a_scanner_without_a_manufacturer_is_unknown(tmp_path: Path) -> None:
    edit = putting({"Manufacturer": b"", "ManufacturerModelName": b""})
    made = dcmread(derive_series(tmp_path, replace(SMALL, edit=edit))[0])
    assert made.ContributingEquipmentSequence[0].Manufacturer == "Unknown"


@pytest.mark.parametrize("image_type", [None, ["ORIGINAL"], ["ORIGINAL", "PRIMARY"]])
def test_our_image_type_has_five_values_whatever_the_source_says(
    tmp_path: Path, image_type: list[str] | None
) -> None:
    def edit(made: Dataset, _: int) -> None:
        made.ImageType = image_type

    made = dcmread(derive_series(tmp_path, replace(SMALL, edit=edit))[0])
    assert list(made.ImageType) == ["DERIVED", "SECONDARY", "AXIAL", "", "AI_INTERP"]


def test_copies_keep_the_bytes_of_their_position(tmp_path: Path) -> None:
    position = b"-0150.0\\-1.20E+02 \\%d.00"

    def edit(made: Dataset, index: int) -> None:
        phantoms.put(made, "ImagePositionPatient", position % (5 * index))

    series = replace(SMALL, slices=3, edit=edit, patient=Patient(name=b""))
    files = derive_series(tmp_path, series)
    found = {raw(path, "ImagePositionPatient") for path in files}
    assert {position % (5 * index) for index in range(3)} <= found


def test_a_frame_of_reference_uid_that_no_result_can_have_is_refused_by_its_name(
    tmp_path: Path,
) -> None:
    header = read_header(phantoms.write(tmp_path, Series(slices=1))[0])
    element = h.raw(0x00200052, "UI", b"1" * 66)
    longer = replace(header, elements={**header.elements, 0x00200052: element})
    fault = instance_fault(longer)
    assert fault is not None
    assert fault.reason == Reason.MISSING_UIDS
    assert "Frame of Reference UID" in fault.sentence
    assert instance_fault(header) is None

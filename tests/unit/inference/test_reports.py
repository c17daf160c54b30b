"""Reports, key object selections and captures: what is the same in them for every family."""

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import highdicom
import numpy as np
import pytest
import SimpleITK as sitk
from highdicom.sr import MeasurementsAndQualitativeEvaluations
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes

from inference import header as h
from inference.dataset import Header, read_headers
from inference.header import Elements
from inference.results import reports
from inference.results.captures import MARK, Page, capture, grey, heated
from inference.results.key_objects import key_objects
from inference.results.making import Algorithm, Making, Reference
from inference.scope import is_derived_by_node
from inference.uids import as_uid
from tests import phantoms
from tests.mr_series import setting
from tests.phantoms import Edit, Patient, Series
from tests.validators import new_complaints

ALGORITHM = Algorithm("haemorrhage", "1.0.0", "d77d63c7ebee" + "0" * 52, "slice threshold 0.22")
RESEARCH = "Research only, not for diagnosis"


def uid_of(place: str) -> str:
    return as_uid(f"{place:>16}".encode()[-16:])


MAKING = Making(
    algorithm=ALGORITHM,
    uid_of=uid_of,
    at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    station_name="MIDSLICE",
    creator_uid=uid_of("node"),
    frame_uid=uid_of("frame"),
)


@dataclass(frozen=True)
class Objects:
    """One of each, with the slices that they are about."""

    sources: Sequence[Path]
    report: Path
    selection: Path
    capture: Path

    @property
    def all(self) -> list[Path]:
        return [self.report, self.selection, self.capture]


def group(header: Header) -> MeasurementsAndQualitativeEvaluations:
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=reports.tracking(MAKING, "series"),
        finding_type=codes.SCT.Nodule,
        algorithm_id=reports.algorithm(MAKING, "series threshold 0.50"),
        source_images=[reports.source_image(Reference.of(header))],
    )


def report_of(header: Header, sop_class: reports.ReportClass = "Comprehensive") -> Elements:
    evidence = [Reference.of(header)]
    text = "Trained on 66 patients."
    return reports.report(
        header, [group(header)], evidence, text, MAKING,
        what="Scores", number=3, sop_class=sop_class,
    )  # fmt: skip


def made(folder: Path, edit: Edit | None = None, series: Series | None = None) -> Objects:
    sources = phantoms.write(folder / "source", replace(series or Series(), edit=edit))
    headers = read_headers(sources)
    page = Page(300, 200, "A page")
    objects = {
        "report.dcm": report_of(headers[2]),
        "selection.dcm": key_objects(headers[1:3], "Why these.", MAKING, what="Keys", number=4),
        "capture.dcm": capture(headers[1:3], page, MAKING, what="Page", number=5),
    }
    for name, elements in objects.items():
        h.write_file(folder / name, elements)
    return Objects(sources, *(folder / name for name in objects))


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    return made(tmp_path_factory.mktemp("objects"))


def said_by(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, timeout=60, check=True)
    return done.stdout.decode("latin-1")


def test_all_are_conformant_and_fit_their_source(objects: Objects) -> None:
    assert not new_complaints(objects.sources, objects.all)


def test_each_is_a_series_of_its_own_and_says_that_it_is_research(objects: Objects) -> None:
    headers = read_headers(objects.all)
    source = read_headers(objects.sources)[0]
    assert len({header.text("SeriesInstanceUID") for header in headers}) == 3
    assert len({header.text("SeriesNumber") for header in headers}) == 3
    assert [header.text("Modality") for header in headers] == ["SR", "KO", "OT"]
    for header in headers:
        assert header.text("SeriesDescription").endswith("(AI, research)")
        assert header.text("ContentQualification") == "RESEARCH"
        assert is_derived_by_node(header)
        for keyword in h.PATIENT_AND_STUDY:
            assert header.raw(keyword) == source.raw(keyword)


def test_the_report_says_research_first_then_who_what_and_with_which_threshold(
    objects: Objects,
) -> None:
    read = highdicom.sr.srread(objects.report)
    assert (read.CompletionFlag, read.VerificationFlag, read.PreliminaryFlag) == (
        *("COMPLETE", "UNVERIFIED", "PRELIMINARY"),
    )
    contained = [item for item in read.ContentSequence if item.RelationshipType == "CONTAINS"]
    assert contained[0].TextValue == f"{RESEARCH}. Trained on 66 patients."
    assert contained[1].ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurements"
    (group,) = read.content.get_image_measurement_groups()
    assert group.tracking_uid == uid_of("tracking of series")
    shown = said_by("dsrdump", "+Pl", objects.report)
    for words in ('Algorithm Version:")="1.0.0 d77d63c7ebee', "series threshold 0.50", RESEARCH):
        assert words.replace(':"', '"') in shown
    assert "CT unspecified body region" in shown
    evidence = read.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert len(evidence.ReferencedSOPSequence) == 1


def test_a_report_may_be_of_the_class_that_holds_places_in_the_patient(
    objects: Objects, tmp_path: Path
) -> None:
    h.write_file(
        tmp_path / "3d.dcm", report_of(read_headers(objects.sources)[0], "Comprehensive 3D")
    )
    assert dcmread(tmp_path / "3d.dcm").SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34"
    assert not new_complaints(objects.sources, [tmp_path / "3d.dcm"])


def coded_procedure(scheme: str) -> Edit:
    def edit(dataset: Dataset, index: int) -> None:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator = "24725-4", scheme
        code.CodeMeaning = "CT Head"
        dataset.ProcedureCodeSequence = [code]
        order = Dataset()
        order.RequestedProcedureID, order.RequestedProcedureDescription = "R1", "Schädel"
        order.ScheduledProcedureStepID = "S1"
        dataset.RequestAttributesSequence = [order]

    return edit


@pytest.mark.parametrize(
    ("scheme", "meaning"), [("LN", "CT Head"), ("99SITE", "CT unspecified body region")]
)
def test_the_procedure_is_that_of_the_source_where_others_know_its_code(
    tmp_path: Path, scheme: str, meaning: str
) -> None:
    objects = made(tmp_path, coded_procedure(scheme))
    read = dcmread(objects.report)
    (procedure,) = (
        item
        for item in read.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Procedure reported"
    )
    assert procedure.ConceptCodeSequence[0].CodeMeaning == meaning
    (order,) = read.ReferencedRequestSequence
    assert (order.RequestedProcedureID, order.RequestedProcedureDescription) == ("R1", "Schädel")
    assert not new_complaints(objects.sources, objects.all)


def test_the_selection_names_the_slices_in_order_and_no_others(objects: Objects) -> None:
    read = highdicom.ko.KeyObjectSelectionDocument.from_dataset(dcmread(objects.selection))
    assert read.ConceptNameCodeSequence[0].CodeValue == "113000"
    references = [item.ReferencedSOPSequence[0] for item in read.ContentSequence[-2:]]
    wanted = [header.uid for header in read_headers(objects.sources)[1:3]]
    assert [item.ReferencedSOPInstanceUID for item in references] == wanted
    shown = said_by("dsrdump", "+Pl", objects.selection)
    assert f"{RESEARCH}. Why these." in shown


def test_the_capture_is_a_colour_picture_that_others_read(objects: Objects, tmp_path: Path) -> None:
    header = dcmread(objects.capture)
    assert (header.BurnedInAnnotation, header.PhotometricInterpretation) == ("YES", "RGB")
    assert list(header.ImageType)[:2] == ["DERIVED", "SECONDARY"]
    said_by("dcmj2pnm", "+on", objects.capture, tmp_path / "page.png")
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(objects.capture)))
    np.testing.assert_array_equal(image.reshape(200, 300, 3), Page(300, 200, "A page").pixels)
    assert (header.pixel_array == np.array(MARK)).all(axis=2).any()  # the words of research


def test_doing_it_twice_gives_the_same_bytes(objects: Objects, tmp_path: Path) -> None:
    again = made(tmp_path)
    for first, second in zip(objects.all, again.all, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_a_name_in_any_character_set_is_copied_byte_by_byte(tmp_path: Path) -> None:
    greek = Patient(name="Διονυσιος".encode("iso8859-7"))
    objects = made(tmp_path, series=Series(patient=greek, character_set="ISO_IR 126"))
    for header in read_headers(objects.all):
        assert header.raw("PatientName").rstrip() == greek.name
    assert not new_complaints(objects.sources, objects.all)


POOR = (
    *("StudyID", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate"),
    *("Manufacturer", "SeriesDescription", "SeriesNumber"),
)


def poor(dataset: Dataset, index: int) -> None:
    for keyword in POOR:
        delattr(dataset, keyword)


@pytest.mark.parametrize(
    "edit",
    [
        poor,
        setting(PatientIdentityRemoved="YES", DeidentificationMethod="By the publisher"),
        setting(LossyImageCompression="01", LossyImageCompressionRatio="10"),
    ],
)
def test_a_poor_or_odd_header_gives_objects_that_lack_no_more(
    tmp_path: Path, edit: Callable[[Dataset, int], None]
) -> None:
    objects = made(tmp_path, edit)
    assert not new_complaints(objects.sources, objects.all)
    source = dcmread(objects.sources[0])
    page = dcmread(objects.capture)
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio"):
        assert page.get(keyword) == source.get(keyword)


def test_a_page_breaks_lines_and_heats_pictures() -> None:
    page = Page(300, 200, "A page")
    end = page.paragraph(10, 60, "word " * 40, 100)
    assert end > 60 + 4 * 15
    drawn = (page.pixels != Page(300, 200, "A page").pixels).any(axis=2)
    assert np.flatnonzero(drawn.any(axis=0)).max() <= 112
    picture = grey(np.full((4, 4), 40.0), 40.0, 80.0)
    assert (picture == 128).all()
    heat = np.zeros((4, 4))
    heat[0, 0] = 1.0
    assert (heated(picture, heat)[1:] == 128).all()
    assert (heated(picture, heat)[0, 0] != 128).all()

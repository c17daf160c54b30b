"""CT stacks for models that take a whole one: what is refused, and what the headers say."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from inference import ct
from inference.dataset import Stack, read_headers
from inference.errors import Reason, Unprocessable
from inference.geometry import Layout
from inference.model import Limits, Parameters, Prediction, SeriesFacts, Step, Window
from inference.pixels import PixelReader
from inference.request import Output
from inference.stacks import stacks_of
from inference.volume import Geometry
from tests import mr_series, phantoms
from tests.mr_series import setting
from tests.phantoms import Edit, Series
from tests.unit.inference.made import request, unchecked


def stack_of(folder: Path, edit: Edit | None = None, series: Series | None = None) -> Stack:
    files = phantoms.write(folder, replace(series or Series(), edit=edit))
    return Stack("ct", tuple(read_headers(files)))


def fault_of(stack: Stack) -> Unprocessable:
    with pytest.raises(Unprocessable) as refused:
        ct.examine(stack, Output())
    return refused.value


def test_a_whole_stack_is_in_the_order_of_its_places_and_in_hu(tmp_path: Path) -> None:
    series = Series(descending=True)
    layout = ct.examine(stack_of(tmp_path, series=series), Output())
    assert np.all(layout.geometry.gaps_mm > 0)
    volume = ct.open_volume(layout, PixelReader())
    np.testing.assert_allclose(volume.read(2), phantoms.hounsfield(series, 2), atol=0.51)


@pytest.mark.parametrize(
    ("edit", "reason", "words"),
    [
        (setting(Modality="PT"), Reason.OUT_OF_SCOPE, "modality PT"),
        (setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), Reason.NOT_A_CT_SLICE, ""),
        (setting(NumberOfFrames=3), Reason.ENHANCED_NOT_SUPPORTED, ""),
        (setting(RescaleType="US"), Reason.NOT_HU, "US"),
        (setting(RescaleSlope=None), Reason.NOT_HU, ""),
        (setting(SyntheticData="YES"), Reason.DERIVED_INPUT, "artificial intelligence"),
        (
            setting(ImageType=["DERIVED", "SECONDARY", "AXIAL", "", "AI_INTERP"]),
            Reason.DERIVED_INPUT,
            "artificial intelligence",
        ),
        (setting(ImageType=["DERIVED", "SECONDARY", "MIP"]), Reason.DERIVED_INPUT, "projection"),
        (setting(BurnedInAnnotation="YES"), Reason.NOT_A_CT_SLICE, "burned"),
        (setting(QualityControlImage="YES"), Reason.OUT_OF_SCOPE, "phantom"),
    ],
)
def test_what_no_model_of_whole_stacks_takes_is_refused(
    tmp_path: Path, edit: Edit, reason: Reason, words: str
) -> None:
    fault = fault_of(stack_of(tmp_path, edit))
    assert (fault.reason, fault.is_held) == (reason, False)
    assert words in fault.sentence


def test_an_mr_stack_is_refused(tmp_path: Path) -> None:
    stack = Stack("mr", tuple(read_headers(mr_series.write(tmp_path))))
    assert fault_of(stack).reason is Reason.OUT_OF_SCOPE


def test_one_generated_slice_among_received_ones_is_enough(tmp_path: Path) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.SyntheticData = "YES" if index == 3 else "NO"

    assert fault_of(stack_of(tmp_path, edit)).reason is Reason.DERIVED_INPUT


def test_a_derived_series_of_the_node_is_refused_slice_by_slice(tmp_path: Path) -> None:
    made = request(phantoms.write(tmp_path / "received"), tmp_path / "derived")
    unchecked(made)
    headers = read_headers(sorted(made.folder.glob("*.dcm")))
    assert len(headers) == 11
    for header in headers:  # the copies of received slices too
        assert fault_of(Stack("ct", (header,))).reason is Reason.DERIVED_INPUT


def test_a_hole_is_held_without_the_advice_to_leave_it(tmp_path: Path) -> None:
    fault = fault_of(stack_of(tmp_path, series=Series(slices=9, missing=(4,))))
    assert (fault.reason, fault.is_held) == (Reason.MISSING_SLICES, True)
    assert "across_missing" not in fault.sentence


def test_too_few_slices_are_refused(tmp_path: Path) -> None:
    assert fault_of(stack_of(tmp_path, series=Series(slices=1))).reason is Reason.TOO_FEW_SLICES


def test_slices_that_others_brought_belong_to_the_stack(tmp_path: Path) -> None:
    headers = read_headers(phantoms.write(tmp_path, Series(slices=9)))
    stack = Stack("ct", tuple(headers[::2]), beside=tuple(headers[1::2]))
    assert fault_of(stack).reason is Reason.MIXED_ACQUISITIONS


def test_a_localizer_beside_the_slices_is_left_out(tmp_path: Path) -> None:
    files = phantoms.write(tmp_path, Series(localizer=True))
    (stack,) = stacks_of(read_headers(files))
    assert len(ct.examine(stack, Output()).headers) == 6


def facts(tmp_path: Path, **values: object) -> SeriesFacts:
    return ct.facts_of(stack_of(tmp_path, setting(**values)).headers)


def test_the_facts_are_what_the_slices_say_each_value_once(tmp_path: Path) -> None:
    order = Dataset()
    order.RequestedProcedureDescription = "CT head, post contrast"
    agent = Dataset()
    agent.CodeValue, agent.CodingSchemeDesignator, agent.CodeMeaning = "1", "99X", "Iohexol"
    said = facts(
        tmp_path,
        BodyPartExamined="HEAD",
        ProtocolName=lambda index: f"Run {index % 2}",
        ConvolutionKernel=["H31s", "3"],
        SeriesDescription="  ",
        RequestAttributesSequence=[order],
        ContrastBolusAgentSequence=[agent],
    )
    assert said.values["BodyPartExamined"] == ("HEAD",)
    assert said.values["ProtocolName"] == ("Run 0", "Run 1")
    assert said.values["ConvolutionKernel"] == (r"H31s\3",)
    assert said.values["RequestedProcedureDescription"] == ("CT head, post contrast",)
    assert said.values["ContrastBolusAgent"] == ("Iohexol",)
    assert "SeriesDescription" not in said.values
    assert said.of("BodyPartExamined", "SeriesDescription", "ProtocolName") == (
        ("BodyPartExamined", "HEAD"),
        ("ProtocolName", "Run 0"),
        ("ProtocolName", "Run 1"),
    )


@pytest.mark.parametrize(
    ("values", "years"),
    [
        ({"PatientAge": "045Y"}, 45.0),
        ({"PatientAge": "018M"}, 1.5),
        ({"PatientAge": "026W"}, 0.5),
        ({"PatientAge": "", "PatientBirthDate": "20000101", "StudyDate": "20100101"}, 10.0),
        ({"PatientAge": "", "PatientBirthDate": "", "StudyDate": "20100101"}, None),
        ({"PatientAge": "", "PatientBirthDate": "20110101", "StudyDate": "20100101"}, None),
    ],
)
def test_the_age_is_that_of_the_header_or_between_its_dates(
    tmp_path: Path, values: dict[str, object], years: float | None
) -> None:
    age = facts(tmp_path, **values).age_years
    assert age == (None if years is None else pytest.approx(years, abs=0.01))


class Choosy:
    """A model that states its scope, and one that does not."""

    name, version, weights_sha256 = "choosy", "1", ""
    produces = "scores"

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        return ()

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        return Prediction()

    def check_scope(self, facts: SeriesFacts, geometry: Geometry) -> None:
        for keyword, value in facts.of("BodyPartExamined"):
            if value != "HEAD" and not facts.accept_children:
                raise Unprocessable(Reason.OUT_OF_SCOPE, f"{keyword} is '{value}'.")


def test_a_model_states_its_own_scope_by_headers_and_places(tmp_path: Path) -> None:
    model, layout = Choosy(), layout_of(tmp_path, BodyPartExamined="CHEST")
    with pytest.raises(Unprocessable, match="BodyPartExamined is 'CHEST'") as refused:
        ct.check_stated(model, layout, Output())
    assert refused.value.reason is Reason.OUT_OF_SCOPE
    ct.check_stated(model, layout, Output(accept_children=True))
    ct.check_stated(model, layout_of(tmp_path / "2", BodyPartExamined="HEAD"), Output())


def layout_of(folder: Path, **values: object) -> Layout:
    return ct.examine(stack_of(folder, setting(**values)), Output())

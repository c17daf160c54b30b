"""The `match` language: which stacks a route takes, and what it says to the others."""

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.multival import MultiValue

from inference.request import Output, Parameters
from node.config import Destination, Route, load
from node.rules import routing
from node.rules.routing import Candidate, Values, explain, sender_of
from node.work.jobs import snapshot as snapshot_of

ATTRIBUTES: Mapping[str, Values] = {
    "Modality": ("CT",),
    "ImageType": ("ORIGINAL", "PRIMARY", "AXIAL"),
    "PixelSpacing": (0.7, 0.8),
    "SeriesNumber": ("3",),
    "KVP": ("120.0",),
    "StudyDate": ("20260102",),
    "SeriesDescription": ("Thorax 5.0 B30f",),
    "BodyPartExamined": (),
    "StationName": ("",),
}


def route(match: str = "", **keys: object) -> Route:
    written = {"name": "r", "model": "linear", "factor": 2, "destinations": []} | keys
    if match:
        written["match"] = tomllib.loads(f"match = {{ {match} }}")["match"]
    return Route.model_validate(written)


def taken_by(
    *routes: Route,
    called_ae: str = "MIDSLICE",
    calling_ae: str = "CT1",
    attributes: Mapping[str, Values] = ATTRIBUTES,
    gap_mm: float | None = 5.0,
    instances: int = 24,
    tilt_degrees: float | None = 0.0,
) -> tuple[list[str], list[str]]:
    """The names of the routes that take the stack, and what each route says."""
    candidate = Candidate(
        called_ae=called_ae,
        calling_ae=calling_ae,
        attributes=lambda keyword: attributes.get(keyword, ()),
        gap_mm=gap_mm,
        instances=instances,
        tilt_degrees=tilt_degrees,
        node_ae="MIDSLICE",
    )
    explained = explain(routes, candidate)
    taking = [explanation.route for explanation in explained if explanation.matches]
    return taking, [explanation.sentence for explanation in explained]


@pytest.mark.parametrize(
    "match",
    [
        'Modality = "CT"',
        'Modality = ["MR", "CT"]',
        'ImageType = { has = "AXIAL" }',
        'ImageType = "ORIGINAL\\\\PRIMARY\\\\AXIAL"',
        'ImageType = { regex = "PRIMARY.*AXIAL$" }',
        "PixelSpacing = { max = 0.8 }",
        "SeriesNumber = 3",
        "SeriesNumber = [1, 3]",
        "KVP = 120",
        'KVP = "120.0"',
        "KVP = { min = 120, max = 120.0 }",
        "StudyDate = { min = 20260101 }",
        'SeriesDescription = { regex = "(?i)thorax" }',
        'SeriesDescription = { regex = "B30f$", has = "Thorax 5.0 B30f" }',
        "gap_mm = { min = 2.0 }",
        "gap_mm = 5",
        "instances = { min = 2, max = 500 }",
        "instances = [12, 24]",
        "tilt_degrees = { max = 0.5 }",
        'Modality = "CT", gap_mm = { min = 5 }, ImageType = { has = "PRIMARY" }',
    ],
)
def test_a_stack_that_is_as_the_rule_says_is_taken(match: str) -> None:
    assert taken_by(route(match)) == (["r"], ["All its conditions hold."])


@pytest.mark.parametrize(
    ("match", "objection"),
    [
        ('Modality = "MR"', "Modality is CT, but must be MR."),
        ('Modality = "ct"', "Modality is CT, but must be ct."),
        ('Modality = ["MR", "PT"]', "Modality is CT, but must be MR or PT."),
        ('ImageType = "AXIAL"', "ImageType is ORIGINAL\\PRIMARY\\AXIAL, but must be AXIAL."),
        (
            'ImageType = { has = "MPR" }',
            "ImageType is ORIGINAL\\PRIMARY\\AXIAL; none of its values is MPR.",
        ),
        ("PixelSpacing = { max = 0.75 }", "PixelSpacing is 0.8, but must be at most 0.75."),
        ("PixelSpacing = { min = 0.75 }", "PixelSpacing is 0.7, but must be at least 0.75."),
        ("SeriesNumber = 30", "SeriesNumber is 3, but must be 30."),
        ("Modality = { min = 1 }", "Modality is CT, which is not a number."),
        ("Modality = 5", "Modality is CT, but must be 5."),
        (
            'SeriesDescription = { regex = "^B30f" }',
            "which does not match the regular expression ^B30f.",
        ),
        ('BodyPartExamined = "HEAD"', "BodyPartExamined is absent."),
        ('StationName = ""', "StationName is absent."),
        ('StationName = { regex = ".*" }', "StationName is absent."),
        ('PatientPosition = { has = "HFS" }', "PatientPosition is absent."),
        ("gap_mm = { min = 5.1 }", "gap_mm is 5, but must be at least 5.1."),
        ("instances = { max = 23 }", "instances is 24, but must be at most 23."),
        ("tilt_degrees = { min = 1 }", "tilt_degrees is 0, but must be at least 1."),
        ('Modality = "CT", gap_mm = { min = 9 }', "gap_mm is 5, but must be at least 9."),
    ],
)
def test_a_stack_that_is_not_is_told_why(match: str, objection: str) -> None:
    found, (said,) = taken_by(route(match))
    assert found == []
    assert said.endswith(objection)


def test_a_measure_that_could_not_be_taken_does_not_match() -> None:
    found, said = taken_by(
        route("gap_mm = { min = 0 }"), route("tilt_degrees = 0"), gap_mm=None, tilt_degrees=None
    )
    assert (found, said) == ([], ["gap_mm is absent.", "tilt_degrees is absent."])


def test_something_that_is_no_number_lies_in_no_range() -> None:
    for text in ("nan", "inf", "1e999", "", "12A"):
        found, _ = taken_by(route("KVP = { min = 0 }"), attributes={"KVP": (text,)})
        assert found == [], text


HEAD_CT: Mapping[str, Values] = {
    "Modality": ("CT",),
    "BodyPartExamined": ("HEAD",),
    "StudyDescription": ("CT head and neck w/wo contrast",),
    "SeriesDescription": ("CCT nativ 4.0",),
    "ConvolutionKernel": ("H31s", "3"),
}


@pytest.mark.parametrize(
    ("match", "changes", "objection"),
    [
        ('contrast = "no", kernel = "soft", body_part = "head"', {}, ""),
        ('contrast = ["no", "unknown"]', {"SeriesDescription": ("4.0",)}, ""),
        ('body_part = { has = "neck" }', {"SeriesDescription": ("Head Neck",)}, ""),
        (
            'body_part = "head"',
            {"SeriesDescription": ("Head Neck",)},
            "body_part is head\\neck (SeriesDescription says Head, Neck), but must be head.",
        ),
        (
            'contrast = ["no", "unknown"]',
            {"SeriesDescription": ("Head CTA 0.6",)},
            "contrast is yes (SeriesDescription says CTA), but must be no or unknown.",
        ),
        (
            'contrast = "no"',
            {"ContrastBolusAgent": ("Ultravist",)},
            "contrast is yes (ContrastBolusAgent has a value), but must be no.",
        ),
        (
            'kernel = "soft"',
            {"ConvolutionKernel": ("H60s",)},
            "kernel is sharp (ConvolutionKernel is H60s), but must be soft.",
        ),
        ('kernel = "soft"', {"ConvolutionKernel": ()}, "kernel is unknown, but must be soft."),
        (
            'body_part = { has = "chest" }',
            {},
            "body_part is head (SeriesDescription says CCT); none of its values is chest.",
        ),
    ],
)
def test_contrast_kernel_and_body_part_are_read_from_the_words(
    match: str, changes: Mapping[str, Values], objection: str
) -> None:
    names, (sentence,) = taken_by(route(match), attributes={**HEAD_CT, **changes})
    assert names == ([] if objection else ["r"])
    assert sentence == (objection or "All its conditions hold.")


def test_the_word_that_decided_is_told_to_those_who_see_no_patient() -> None:
    sentence = "contrast is yes (SeriesDescription says CTA), but must be no."
    assert routing.without_value("contrast", sentence) == sentence


def test_every_matching_route_runs_in_the_order_of_the_file() -> None:
    routes = [
        route('Modality = "CT"', name="a"),
        route('Modality = "MR"', name="b"),
        route(name="c"),
    ]
    assert taken_by(*routes)[0] == ["a", "c"]


def test_no_route_takes_nothing() -> None:
    assert taken_by() == ([], [])


def test_a_route_without_a_called_ae_title_is_for_that_of_the_node() -> None:
    own, other = route(name="own"), route(name="other", called_ae_title="MIDSLICE4")
    assert taken_by(own, other)[0] == ["own"]
    found, said = taken_by(own, other, called_ae="MIDSLICE4")
    assert found == ["other"]
    assert said[0] == "It was sent to MIDSLICE4; the route takes only what is sent to MIDSLICE."


def test_a_route_may_be_for_one_calling_ae_title() -> None:
    ct2 = route(calling_ae_title="CT2")
    assert taken_by(ct2, calling_ae="CT2")[0] == ["r"]
    assert taken_by(ct2) == ([], ["It was sent by CT1; the route takes only what CT2 sends."])


def test_every_objection_of_a_route_is_given_in_full_sentences() -> None:
    match = (
        'Modality = "MR", gap_mm = { max = 2 }, SeriesDescription = { regex = "Skull", has = 3 }'
    )
    choosy = route(match, called_ae_title="OTHER", calling_ae_title="CT2")
    assert taken_by(choosy) == (
        [],
        [
            "It was sent to MIDSLICE; the route takes only what is sent to OTHER. "
            "It was sent by CT1; the route takes only what CT2 sends. "
            "Modality is CT, but must be MR. "
            "gap_mm is 5, but must be at most 2. "
            "SeriesDescription is Thorax 5.0 B30f; none of its values is 3. "
            "SeriesDescription is Thorax 5.0 B30f, which does not match the regular expression "
            "Skull."
        ],
    )


def test_a_sender_that_is_not_named_is_an_objection_like_any_other() -> None:
    choosy = route('Modality = "MR"', calling_ae_title="CT2")
    assert taken_by(choosy, calling_ae="")[1] == [
        "No sender is named; the route takes only what CT2 sends. Modality is CT, but must be MR."
    ]
    assert taken_by(route(), calling_ae="")[0] == ["r"]


def test_values_as_pydicom_reads_them_compare_like_the_text_that_they_stand_for() -> None:
    header = Dataset()
    header.SliceThickness = "5.00"
    header.SeriesNumber = "12"
    header.PixelSpacing = ["0.5", "0.5"]
    header.PatientName = "Doe^Jane"
    header.Manufacturer = "SIEMENS "

    def values(keyword: str) -> Values:
        value = header.get(keyword)
        return tuple(value) if isinstance(value, MultiValue) else (value,)

    read = {keyword: values(keyword) for keyword in header.dir()}
    asked = route(
        'SliceThickness = 5, SeriesNumber = "12", PixelSpacing = { min = 0.5, has = 0.5 }, '
        'PatientName = { regex = "^Doe" }, Manufacturer = "SIEMENS"'
    )
    assert taken_by(asked, attributes=read) == (["r"], ["All its conditions hold."])


def test_the_shipped_route_takes_thick_axial_ct_and_nothing_else() -> None:
    routes = load(Path(__file__).parents[2] / "config.toml").routes
    assert taken_by(*routes)[0] == ["ct-slices"]
    assert taken_by(*routes, gap_mm=1.25)[0] == []
    localizer = dict(ATTRIBUTES) | {"ImageType": ("ORIGINAL", "PRIMARY", "LOCALIZER")}
    assert taken_by(*routes, attributes=localizer)[0] == []
    assert taken_by(*routes, attributes=dict(ATTRIBUTES) | {"Modality": ("MR",)})[0] == []


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_range_holds_its_own_bounds(value: float, one: float, other: float) -> None:
    low, high = sorted((one, other))
    asked = route(f"KVP = {{ min = {low!r}, max = {high!r} }}")
    assert (taken_by(asked, attributes={"KVP": (value,)})[0] == ["r"]) == (low <= value <= high)
    assert taken_by(asked, attributes={"KVP": (low,)})[0] == ["r"]
    assert taken_by(asked, attributes={"KVP": (str(high),)})[0] == ["r"]


@given(st.lists(st.text(max_size=8), max_size=4), st.text(min_size=1, max_size=8))
def test_any_text_of_a_peer_is_compared_and_never_interpreted(
    values: list[str], wanted: str
) -> None:
    asked = Route.model_validate(
        {"name": "r", "model": "m", "destinations": [], "match": {"StudyID": {"has": wanted}}}
    )
    found, _ = taken_by(asked, attributes={"StudyID": tuple(values)})
    texts = [value.strip(" \0") for value in values]
    expected = wanted.strip(" \0") in [text for text in texts if text]
    if not any(text.replace(".", "").isdigit() for text in [*texts, wanted]):
        assert (found == ["r"]) == expected


def snapshot(changed: Route) -> dict[str, object]:
    """What a job keeps of a route, as an arrival writes it."""
    return snapshot_of(changed.parameters, replace(changed.output, label="Arterial"))


def test_a_job_keeps_all_that_its_route_asks_of_a_result() -> None:
    of_stack = {"label", "content_qualification"}
    asked = {*vars(Parameters()), *vars(Output())}
    assert {*route().options, *of_stack} == asked
    assert snapshot(route()).keys() == asked
    assert snapshot(route(factor=4))["factor"] == 4
    assert snapshot(route())["label"] == "Arterial"


@pytest.mark.parametrize(
    "change", [{"across_missing": "leave"}, {"hold_below": 0.0}, {"model": "m"}]
)
def test_a_route_has_changed_where_it_asks_for_something_else(change: dict[str, object]) -> None:
    kept = snapshot(route())
    now = route(**change)
    assert routing.has_changed([now], "r", "linear", kept)
    assert not routing.has_changed([now], "r", now.model, snapshot(now))
    assert not routing.has_changed([route()], "r", "linear", kept)
    assert not routing.has_changed([route(destinations=["b"])], "r", "linear", kept)
    assert not routing.has_changed([now], "gone", "linear", kept)


@pytest.mark.parametrize(("calling_ae", "name"), [("WS1", "pacs"), ("CT9", "sender CT9")])
def test_an_unknown_sender_keeps_a_name_of_its_own(calling_ae: str, name: str) -> None:
    pacs = Destination.model_validate(
        {"name": "pacs", "ae_title": "PACS", "host": "h", "port": 1, "sends_as": ["WS1"]}
    )
    assert routing.destination_of("sender", calling_ae, [pacs]) == name
    assert routing.destination_of("pacs", calling_ae, [pacs]) == "pacs"


def test_sender_is_the_destination_that_the_calling_ae_belongs_to() -> None:
    pacs = Destination.model_validate(
        {"name": "pacs", "ae_title": "PACS", "host": "h", "port": 1, "sends_as": ["WS1", "WS2"]}
    )
    other = Destination.model_validate({"name": "b", "ae_title": "B", "host": "h", "port": 1})
    assert sender_of((other, pacs), "WS2") == pacs
    assert sender_of((other, pacs), "B") == other
    assert sender_of((other, pacs), "CT1") is None


def test_a_received_value_is_quoted_short_and_printable() -> None:
    odd = dict(ATTRIBUTES) | {"ConvolutionKernel": ("B\x1b[31m" + "x" * 300,)}
    _, (sentence,) = taken_by(route('ConvolutionKernel = "B30f"'), attributes=odd)
    assert sentence.isprintable()
    assert "x" * 65 not in sentence

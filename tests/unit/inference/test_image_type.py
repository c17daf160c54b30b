"""The words of Image Type: the verdict on each, and what a result says of its source."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from inference import header as h
from inference.dataset import Header, read_header
from inference.errors import Reason, Unprocessable
from inference.kinds import NO_SLICES, RESULT, TERMS, Meaning, image_type_of_result
from inference.request import Output
from inference.scope import check_scope, instance_fault, is_derived_by_node
from tests import phantoms, validators
from tests.phantoms import Series
from tests.unit.inference.made import derive, request

WORDS = [(term.meaning, word) for term in TERMS for word in term.words]
DERIVED = ("DERIVED", "SECONDARY", "AXIAL")


@pytest.fixture(scope="module")
def slice_(tmp_path_factory: pytest.TempPathFactory) -> Header:
    (path,) = phantoms.write(tmp_path_factory.mktemp("slice"), Series(slices=1))
    return read_header(path)


def saying(header: Header, values: Sequence[str], description: str = "Thorax") -> Header:
    image_type = h.raw(0x00080008, "CS", "\\".join(values).encode())
    text = h.raw(0x0008103E, "LO", description.encode())
    return replace(header, elements={**header.elements, 0x00080008: image_type, 0x0008103E: text})


def verdict(header: Header, output: Output | None = None) -> Reason | None:
    """The reason to leave the slice out or to refuse its stack; None for one that is processed."""
    fault = instance_fault(header)
    if fault is not None:
        return fault.reason
    try:
        check_scope(header, output or Output())
    except Unprocessable as refused:
        return refused.reason
    return None


def test_each_word_stands_in_the_table_once_and_has_a_source() -> None:
    assert [word for word, count in Counter(word for _, word in WORDS).items() if count > 1] == []
    assert all(term.source for term in TERMS)
    assert {meaning for meaning, _ in WORDS} == set(Meaning)


@pytest.mark.parametrize(("meaning", "word"), WORDS, ids=[word for _, word in WORDS])
@pytest.mark.parametrize("spelling", ["{}", "CT_SOM5 {}", "{}_10MM", "{}10", "x-{}, y"])
@pytest.mark.parametrize("is_small", [False, True])
def test_a_word_has_its_verdict_in_every_spelling(
    slice_: Header, meaning: Meaning, word: str, spelling: str, is_small: bool
) -> None:
    value = spelling.format(word.lower() if is_small else word)
    header = saying(slice_, [*DERIVED, value])
    if meaning == Meaning.REFORMAT:
        assert verdict(header) is None
        assert any(word in said for said in image_type_of_result([header])[len(RESULT) :])
    else:
        left_out = meaning not in NO_SLICES
        expected = Reason.NOT_A_CT_SLICE if left_out else Reason.DERIVED_INPUT
        assert verdict(header) == expected


@pytest.mark.parametrize("value", ["IMPROVED", "STOP", "CT_SOM5 SPI", "AVRT", "SUMMARY", "MIPPED"])
def test_a_part_of_another_word_is_no_word(slice_: Header, value: str) -> None:
    assert verdict(saying(slice_, [*DERIVED, value])) is None
    assert image_type_of_result([saying(slice_, [*DERIVED, value])]) == RESULT


@pytest.mark.parametrize(
    ("description", "is_refused"),
    [
        ("MIP thin 10/3", True),
        ("min-ip lung", True),
        ("Volume Rendering", True),
        ("CT head post CPR", False),  # after a resuscitation
        ("thorax minimum dose", False),
        ("thin, for MIP", False),
    ],
)
def test_the_description_of_a_derived_image_counts_where_its_word_means_nothing_else(
    slice_: Header, description: str, is_refused: bool
) -> None:
    refused = Reason.DERIVED_INPUT if is_refused else None
    assert verdict(saying(slice_, DERIVED, description)) == refused
    assert verdict(saying(slice_, ["ORIGINAL", "PRIMARY", "AXIAL"], description)) is None


@pytest.mark.parametrize(("cut", "left_out"), [("AXIAL", False), ("", True), ("OTHER", True)])
def test_a_description_makes_no_localizer_of_an_axial_image(
    slice_: Header, cut: str, left_out: bool
) -> None:
    header = saying(slice_, ["ORIGINAL", "PRIMARY", cut], "Scout and thorax")
    assert verdict(header) == (Reason.NOT_A_CT_SLICE if left_out else None)


def test_a_reformat_is_none_of_the_acquired_images_whatever_value_1_says(slice_: Header) -> None:
    header = saying(slice_, ["ORIGINAL", "PRIMARY", "AXIAL", "MPR"])
    assert verdict(header) is None
    assert verdict(header, Output(accept_derived=False)) == Reason.DERIVED_INPUT


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        (["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"], ["REFORMATTED", "AVERAGE"]),
        (["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 MPR"], ["CT_SOM5 MPR"]),
        (["DERIVED", "PRIMARY", "AXIAL", "Average of 10 thin slices"], ["AVERAGE"]),  # no CS
        (["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 SPI"], []),
        (["ORIGINAL", "PRIMARY", "AXIAL"], []),
    ],
)
def test_a_result_says_what_its_source_says_it_is_and_the_validators_have_nothing_against_it(
    tmp_path: Path, values: list[str], kept: list[str]
) -> None:
    def edit(made: Dataset, _: int) -> None:
        phantoms.put(made, "ImageType", "\\".join(values).encode())

    sources = phantoms.write(tmp_path / "received", Series(slices=3, edit=edit))
    derived = derive(request(sources, tmp_path / "derived"))
    assert {tuple(dcmread(path).ImageType) for path in derived} == {(*RESULT, *kept)}
    assert [line for path in derived for line in validators.dciodvfy(path)] == []
    # The guard against loops looks at value 5.
    assert all(is_derived_by_node(read_header(path)) for path in derived)


def test_a_word_of_a_single_slice_stands_in_all_instances(tmp_path: Path) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.ImageType = [*DERIVED, "AVERAGE" if index == 3 else "OTHER"]

    derived = derive(request(phantoms.write(tmp_path / "in", Series(edit=edit)), tmp_path / "out"))
    assert {tuple(dcmread(path).ImageType) for path in derived} == {(*RESULT, "AVERAGE")}

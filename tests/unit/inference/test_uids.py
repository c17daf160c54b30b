"""Derived UIDs: the same for the same input, another for everything that changes a result."""

import hashlib
import hmac
import re
import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.model import Parameters
from inference.request import Output
from inference.uids import Identity, UidMaker, joined, node_uid

PLAIN = Identity(
    sources=(("1.2.3", "aa"), ("1.2.4", "bb")),
    patient_and_study=b"\x10\x00One^Phantom",
    model="midslice",
    version="1.0.0",
    weights_sha256="cc",
    parameters=Parameters(factor=4),
    output=Output(),
    edition=1,
)
SECRET = b"secret"


def uid(**changes: object) -> str:
    return UidMaker(SECRET, replace(PLAIN, **changes)).series()  # type: ignore[arg-type]


def test_the_same_input_gives_the_same_uids() -> None:
    one, two = UidMaker(SECRET, PLAIN), UidMaker(SECRET, PLAIN)
    assert one.series() == two.series()
    assert one.instance("a") == two.instance("a")
    assert len({one.series(), one.instance("a"), one.instance("b")}) == 3


def test_the_order_of_the_sources_changes_nothing() -> None:
    assert uid(sources=PLAIN.sources[::-1]) == uid()


@pytest.mark.parametrize(
    "changes",
    [
        {"sources": (("1.2.3", "aa"),)},
        {"sources": (("1.2.3", "aa"), ("1.2.4", "bc"))},
        {"sources": (("1.2.3", "bb"), ("1.2.4", "aa"))},
        {"patient_and_study": b"\x10\x00Two^Phantom"},
        {"model": "linear"},
        {"version": "1.0.1"},
        {"weights_sha256": "cd"},
        {"parameters": Parameters(factor=3)},
        {"parameters": Parameters(target_spacing_mm=4.0)},
        {"output": Output(include_received=False)},
        {"output": Output(slice_thickness="spacing")},
        {"output": Output(across_missing="leave")},
        {"output": Output(content_qualification="PRODUCT")},
        {"output": Output(label="rev 2")},
        {"output": Output(max_findings=3)},
        {"output": Output(report="2d")},
        {"edition": 2},
    ],
)
def test_everything_that_changes_a_result_changes_the_uid(changes: dict[str, object]) -> None:
    assert uid(**changes) != uid()


def test_another_site_gives_another_uid() -> None:
    assert UidMaker(b"other", PLAIN).series() != UidMaker(SECRET, PLAIN).series()
    assert node_uid(b"other", "MIDSLICE") != node_uid(SECRET, "MIDSLICE")


def test_a_uid_is_a_uuid_made_of_the_keyed_digest() -> None:
    expected = hmac.new(SECRET, b"node\x1fMIDSLICE", hashlib.sha256).digest()[:16]
    assert node_uid(SECRET, "MIDSLICE") == f"2.25.{uuid.UUID(bytes=expected, version=5).int}"
    assert re.fullmatch(r"2\.25\.[1-9][0-9]{0,38}", uid())


@given(st.lists(st.binary(max_size=6)), st.lists(st.binary(max_size=6)))
def test_no_two_lists_of_fields_are_joined_to_the_same_bytes(
    one: list[bytes], two: list[bytes]
) -> None:
    assert (joined(one) == joined(two)) == (one == two or sorted([one, two]) == [[], [b""]])


def test_fields_do_not_run_into_each_other() -> None:
    assert joined(["a", "bc"]) != joined(["ab", "c"])
    assert joined([b"a\x1fb"]) != joined([b"a", b"b"])
    assert joined([b"a\x10", b"1b"]) != joined([b"a\x1f", b"b"])

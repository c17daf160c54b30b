"""Randomly damaged slices: each ends in a right result or in a verdict, none in a crash."""

import os
import random
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless

from inference.errors import Reason
from inference.geometry import verdict
from inference.request import Derived, Output, Verdict
from inference.stacks import is_derived_by_node, read_headers, set_aside, stacks_of
from node.second_opinion import check
from tests import phantoms
from tests.phantoms import Series
from tests.unit.inference.made import images, request, unchecked

FILES = max(600, int(os.environ.get("FUZZ_COUNT", "500")) // 10)  # of each transfer syntax
SMALL = Series(slices=3, rows=6, columns=5)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few flipped bits, a cut, a repeated or a zeroed piece."""
    changed = bytearray(data)
    kind = chance.randrange(4)
    at = chance.randrange(132, len(changed))
    if kind == 0:
        for _ in range(chance.randint(1, 8)):
            changed[chance.randrange(132, len(changed))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del changed[at:]
    elif kind == 2:
        changed[at:at] = changed[at : at + chance.randrange(64)]
    else:
        changed[at : at + chance.randrange(64)] = b"\0" * 16
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless])
def test_headers_of_mutated_files_never_raise(tmp_path: Path, syntax: str) -> None:
    path = phantoms.write(tmp_path, Series(slices=1, rows=6, columns=5, transfer_syntax=syntax))[0]
    data, chance = path.read_bytes(), random.Random(syntax)
    readable = 0
    for _ in range(FILES):
        path.write_bytes(mutated(data, chance))
        headers = read_headers([path])
        readable += not headers[0].fault
        is_derived_by_node(headers[0])
        set_aside(headers)
        for stack in stacks_of(headers):
            assert verdict(stack, Output()) is not None
    assert readable > 100


@pytest.mark.filterwarnings("ignore")
def test_a_mutated_slice_gives_a_result_that_is_right_or_a_verdict(tmp_path: Path) -> None:
    files = phantoms.write(tmp_path / "received", SMALL)
    data, chance = files[1].read_bytes(), random.Random(7)
    made = request(files, tmp_path / "derived")
    whole = phantoms.write(tmp_path / "whole", SMALL)
    # Its damage makes the slice another object, or is nowhere that counts, or a value like any.
    possible = (files[::2], whole, files)
    seen, unreadable = {}, 0
    for _ in range(200):
        files[1].write_bytes(mutated(data, chance))
        for path in made.folder.iterdir():
            path.unlink()
        outcome = unchecked(made)
        assert isinstance(outcome, Derived | Verdict), outcome
        if isinstance(outcome, Derived):
            derived = images(outcome, made.folder)
            opinions = [_opinion(sources, derived) for sources in possible]
            assert "right" in opinions or "unreadable" in opinions
            unreadable += "right" not in opinions
        seen[getattr(outcome, "reason", "derived")] = outcome
    assert {"derived", Reason.PIXEL_DATA_ERROR} <= set(seen)
    assert unreadable < 3


def _opinion(sources: list[Path], derived: list[Path]) -> str:
    """What the second checker says, which reads some damaged headers less patiently."""
    try:
        faults = check(sources, derived, factor=2)
    except (NotImplementedError, ValueError, AttributeError):
        return "unreadable"
    if any(fault.startswith("absent") for fault in faults):
        return "unreadable"
    return "wrong" if faults else "right"

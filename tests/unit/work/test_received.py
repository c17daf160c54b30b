"""Bytes of received files: a job works on what was acknowledged, or says that it cannot."""

from dataclasses import replace
from pathlib import Path

import pytest

from inference.errors import Reason
from inference.request import Request, Source, Verdict
from node.work.executor import checked
from storage.files import received_digest
from tests import phantoms
from tests.phantoms import Series
from tests.unit.inference.made import request


@pytest.fixture
def whole(tmp_path: Path) -> Request:
    """A job whose files are as they were received."""
    job = made(tmp_path)
    return replace(job, sources=tuple(known(source) for source in job.sources))


def made(folder: Path) -> Request:
    return request(phantoms.write(folder / "sent", Series(slices=4)), folder / "result")


def known(source: Source) -> Source:
    return replace(source, digest=received_digest(source.path))


def flip(path: Path) -> None:
    """Change one bit of the last pixel, as a disk does."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def verdict(job: Request) -> Verdict:
    answer = checked(job)
    assert isinstance(answer, Verdict)
    assert (answer.reason, answer.held) == (Reason.DAMAGED_FILES, True)
    return answer


def test_a_job_whose_files_are_as_they_were_received_is_left_as_it_is(whole: Request) -> None:
    assert checked(whole) is whole


def test_one_flipped_bit_holds_the_job_and_says_in_how_many_files(whole: Request) -> None:
    second = whole.sources[1]
    flip(second.path)
    answer = verdict(whole)
    assert answer.sentence.startswith("1 received file is missing or changed on the disk")
    assert answer.record == {"damaged": [second.instance_uid]}


def test_a_missing_file_is_no_slice_that_was_never_received(whole: Request) -> None:
    for source in (whole.sources[0], whole.sources[-1]):
        source.path.unlink()
    assert verdict(whole).sentence.startswith("2 received files are missing")


def test_a_file_whose_name_is_another_ones_is_damaged(whole: Request) -> None:
    first, second = whole.sources[:2]
    first.path.replace(second.path)
    assert len(verdict(whole).record["damaged"]) == 2  # type: ignore[arg-type]


def test_file_meta_information_is_no_part_of_what_was_received(whole: Request) -> None:
    path = whole.sources[0].path
    content = bytearray(path.read_bytes())
    content[0] ^= 1  # of the preamble
    path.write_bytes(content)
    assert checked(whole) is whole


def test_an_intact_later_version_takes_the_place_of_a_damaged_one(
    whole: Request, tmp_path: Path
) -> None:
    old = whole.sources[0]
    path = tmp_path / "again.dcm"
    path.write_bytes(old.path.read_bytes()[:-1] + b"\x07")
    newer = known(replace(old, path=path, order=max(it.order for it in whole.sources) + 1))
    flip(old.path)
    answer = checked(replace(whole, sources=(newer, *whole.sources)))
    assert isinstance(answer, Request)
    assert set(answer.sources) == {newer, *whole.sources[1:]}


def test_an_older_version_never_takes_the_place_of_a_damaged_one(
    whole: Request, tmp_path: Path
) -> None:
    old = whole.sources[0]
    path = tmp_path / "again.dcm"
    path.write_bytes(old.path.read_bytes()[:-1] + b"\x07")
    newer = known(replace(old, path=path, order=max(it.order for it in whole.sources) + 1))
    flip(path)
    verdict(replace(whole, sources=(newer, *whole.sources)))


def test_a_damaged_file_beside_the_stack_may_be_a_slice_of_it(whole: Request) -> None:
    job = replace(whole, sources=whole.sources[:3], beside=whole.sources[3:])
    assert checked(job) is job
    flip(job.beside[0].path)
    verdict(job)


def test_a_damaged_version_beside_the_stack_does_not_count_where_the_stack_has_a_later_one(
    whole: Request, tmp_path: Path
) -> None:
    path = tmp_path / "before.dcm"
    path.write_bytes(whole.sources[0].path.read_bytes()[:-1] + b"\x07")
    before = known(replace(whole.sources[0], path=path))
    flip(path)
    answer = checked(replace(whole, beside=(before,)))
    assert isinstance(answer, Request)
    assert (answer.sources, answer.beside) == (whole.sources, ())


def test_files_of_which_nobody_knows_a_digest_are_taken_as_they_are(tmp_path: Path) -> None:
    job = made(tmp_path)
    flip(job.sources[0].path)
    assert checked(job) is job

"""Whole real heads: through a model's promises, a job, and the command."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference import ct, mr
from inference.dataset import Stack, read_headers
from inference.model import Limits, Model, Parameters, Scored, Segment, Window
from inference.pixels import PixelReader
from inference.registry import REGISTERED, load, spec_of
from inference.request import Derived, Output, Source
from inference.runner import check_mask, check_scores, check_whole
from inference.volume import Volume
from node.mask_opinion import check
from tests import ct_head
from tests.jobs.test_score_jobs import opinion, real
from tests.mr_series import HEAD, setting
from tests.unit.commands.console import Midslice
from tests.unit.inference.made import request, unchecked
from tests.validators import dciodvfy, new_complaints

MASKERS = [entry.name for entry in REGISTERED if entry.produces == "mask"]
SCORERS = [entry.name for entry in REGISTERED if entry.produces == "scores"]
FILES = sorted(HEAD.glob("*.dcm"))


def loaded(name: str) -> Model:
    """A registered model as the node loads it."""
    return load(spec_of(name))


@pytest.fixture(scope="module")
def head() -> Volume:
    headers = tuple(read_headers(FILES))
    return mr.open_volume(mr.examine(Stack("head", headers)), PixelReader())


@pytest.mark.parametrize("name", MASKERS)
def test_a_mask_is_0_or_1_for_every_pixel_and_the_same_each_time(name: str, head: Volume) -> None:
    planes = {index: head.read(index) for index in range(len(head))}
    before = {index: plane.copy() for index, plane in planes.items()}
    masks = []
    for model in (loaded(name), loaded(name)):
        assert isinstance(getattr(model, "segment", None), Segment)
        steps = model.plan(head.geometry, Parameters())
        check_whole(steps, len(head))
        (step,) = steps
        prediction = model.run(step, Window(head.geometry, planes), Limits())
        check_mask(step, prediction, head)
        masks.append(np.stack(prediction.planes))
    assert masks[0].any()
    np.testing.assert_array_equal(*masks)
    assert all(np.array_equal(planes[index], before[index]) for index in planes)


@pytest.fixture(scope="module")
def ct_volume() -> Volume:
    headers = tuple(read_headers(ct_head.head_files()))
    return ct.open_volume(ct.examine(Stack("head", headers), Output()), PixelReader())


@pytest.mark.parametrize("name", SCORERS)
def test_scores_are_from_0_to_1_for_every_slice_and_the_same_each_time(
    name: str, ct_volume: Volume
) -> None:
    planes = {index: ct_volume.read(index) for index in range(len(ct_volume))}
    before = {index: plane.copy() for index, plane in planes.items()}
    results = []
    for model in (loaded(name), loaded(name)):
        assert isinstance(getattr(model, "scored", None), Scored)
        assert str(model.operating_point).isascii()  # type: ignore[attr-defined]
        (step,) = model.plan(ct_volume.geometry, Parameters())
        check_whole([step], len(ct_volume))
        prediction = model.run(step, Window(ct_volume.geometry, planes), Limits())
        check_scores(step, prediction, ct_volume)
        assert prediction.scores is not None
        results.append(prediction.scores)
    first, second = results
    np.testing.assert_array_equal(first.slices, second.slices)
    assert first.series == second.series
    assert first.heat.keys() == second.heat.keys() <= planes.keys()
    for index, plane in first.heat.items():
        np.testing.assert_array_equal(plane, second.heat[index])
    assert all(np.array_equal(planes[index], before[index]) for index in planes)


def test_the_brain_of_a_real_head_is_written_and_no_validator_objects(tmp_path: Path) -> None:
    sources = tuple(Source(h.path, h.uid, h.order) for h in read_headers(FILES))
    made = replace(request(FILES, tmp_path / "results"), model=spec_of("brain"), sources=sources)
    outcome = unchecked(made)
    assert isinstance(outcome, Derived), outcome
    written = sorted(made.folder.glob("*.dcm"))
    assert not check(FILES, written)
    assert len(written) == len(FILES) + 1
    assert not new_complaints(FILES, written)


def test_process_writes_the_segmentation_and_the_extracted_series_of_a_real_head(
    midslice: Midslice, tmp_path: Path
) -> None:
    command = ("process", HEAD, "--model", "brain", "--out", tmp_path / "out")
    wrong = midslice(*command, "--factor", 2)
    assert wrong.status == 2
    assert "brain makes a mask, not slices" in wrong.err
    result = midslice(*command)
    assert result.status == 0
    assert "Brain mask in 57 slices, volume 1799" in result.out
    files = sorted((tmp_path / "out").glob("*.dcm"))
    assert len(files) == len(FILES) + 1
    assert not check(FILES, files)


def test_a_real_head_is_scored_and_no_validator_objects(tmp_path: Path) -> None:
    made = real(ct_head.head_files(), tmp_path / "results")
    outcome = unchecked(made)
    assert isinstance(outcome, Derived), outcome
    assert not opinion(made)
    scores = outcome.record["scores"]
    assert isinstance(scores, dict)
    assert scores["is_present"]
    assert 7 in scores["high_slices"]  # a haemorrhage by the labels of the data set
    assert scores["map_slices"] == [6, 7, 8]
    assert not [line for path in made.folder.glob("*.dcm") for line in dciodvfy(path)]


def test_a_child_is_scored_where_the_route_takes_children(tmp_path: Path) -> None:
    files = ct_head.write(tmp_path / "received", setting(PatientAge="007Y"))
    made = real(files, tmp_path / "results", accept_children=True)
    assert isinstance(unchecked(made), Derived)

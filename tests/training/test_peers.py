"""Trained peers of the generator: made, stopped, taken up again, and judged beside it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from safetensors.torch import load_file

from inference.errors import ModelLoadError
from inference.models.midslice import Midslice
from inference.training import peers, pix2pix, through_plane
from inference.training.beside import TrainingOrder, trainer
from inference.training.leave_out import TargetList
from inference.training.report import StudyRequest, card, run
from tests.models.made import made_patient

SMALL = (4, 4, 4, 4, 4, 4, 4, 4)


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "ct-train" / "one"
    folder.mkdir(parents=True)
    spacing = np.array([1.0, 0.7, 0.7])
    np.savez(folder / "volume.npz", hu=made_patient().hu, spacing_mm=spacing)
    return tmp_path / "data"


def order_of(data: Path, out: Path, steps: int) -> TrainingOrder:
    return TrainingOrder(data, out, 0.0, steps, 3, "cpu", None)


def held(folder: Path) -> Path:
    """A folder with a patient that no peer was trained on."""
    (folder / "held" / "left").mkdir(parents=True)
    spacing = np.array([1.0, 0.7, 0.7])
    np.savez(folder / "held" / "left" / "volume.npz", hu=made_patient().hu, spacing_mm=spacing)
    return folder / "held"


def told_nothing(_share: float, _words: str) -> None:
    """Progress of which nobody is told."""


def test_a_stopped_training_goes_on_as_it_would_have(patients: Path, tmp_path: Path) -> None:
    train, whole, parts = trainer("through-plane"), tmp_path / "whole", tmp_path / "parts"
    train(order_of(patients, whole, 4), told_nothing)
    train(order_of(patients, parts, 2), told_nothing)
    table = train(order_of(patients, parts, 4), told_nothing)
    assert table.record["steps"] == 4
    assert table.record["patients"] == ("one",)
    kept, other = (load_file(folder / peers.WEIGHTS) for folder in (whole, parts))
    assert all(torch.equal(kept[name], other[name]) for name in kept)


def test_a_checkpoint_of_other_patients_is_refused(patients: Path, tmp_path: Path) -> None:
    train, out = trainer("through-plane"), tmp_path / "out"
    train(order_of(patients, out, 1), told_nothing)
    (patients / "ct-train" / "one").rename(patients / "ct-train" / "two")
    with pytest.raises(ModelLoadError, match="it was trained on one; there are two"):
        train(order_of(patients, out, 2), told_nothing)


def test_pix2pix_learns_both_of_its_networks(patients: Path) -> None:
    (patient,) = peers.load_patients(patients, "ct-train")
    course = pix2pix.Pix2pix(pictures=True, widths=SMALL)
    before = {
        name: [parameter.detach().clone() for parameter in network.parameters()]
        for name, network in course.networks.items()
    }
    assert 0.0 < course.step([patient], default_rng(1), narrow=False) < 2.0
    for name, network in course.networks.items():
        changed = [
            not torch.equal(old, new)
            for old, new in zip(before[name], network.parameters(), strict=True)
        ]
        assert sum(changed) > len(changed) / 2


def test_pix2pix_halves_a_gap_until_it_is_there() -> None:
    class Counting(pix2pix.UNet):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x

    a, c = (np.full((40, 60), value, np.float32) for value in (-1000.0, 1000.0))
    for t, calls, expected in ((0.5, 1, 0.0), (0.25, 2, -500.0), (0.875, 3, 750.0)):
        network = Counting(SMALL)
        plane = pix2pix.interpolated(network, a, c, t, pictures=False)
        assert network.calls == calls
        np.testing.assert_allclose(plane, expected, atol=0.1)


def test_pictures_of_eight_bits_lose_what_the_published_way_loses() -> None:
    plane = np.full((512, 512), 37.0, np.float32)
    exact, published = pix2pix.Coding(pictures=False), pix2pix.Coding(pictures=True)
    np.testing.assert_allclose(exact.decoded(exact.coded(plane), plane), 37.0, atol=0.01)
    coded = published.coded(plane)
    assert coded.shape == (256, 256)
    back = published.decoded(coded, plane)
    assert back.shape == plane.shape
    assert 0.5 < abs(float(back.mean()) - 37.0) < 6.1  # half a step of 12 HU


def test_the_side_network_begins_near_linear_and_is_exact_at_received_slices() -> None:
    torch.manual_seed(0)
    network = through_plane.SideNetwork().eval()
    planes = [default_rng(k).normal(0.0, 50.0, (24, 32)).astype(np.float32) for k in range(4)]
    assert not np.array_equal(
        through_plane.interpolated(network, planes, 0.5, 5.0, 0.7), 0.5 * (planes[1] + planes[2])
    )
    at_a, at_c = (through_plane.interpolated(network, planes, t, 5.0, 0.7) for t in (0.0, 1.0))
    np.testing.assert_allclose(at_a, planes[1], atol=1e-3)
    np.testing.assert_allclose(at_c, planes[2], atol=1e-3)


def test_a_peer_is_judged_beside_the_generator_and_in_the_card(
    patients: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "peers"
    trainer("through-plane")(order_of(patients, folder / "through-plane", 1), told_nothing)
    wanted = StudyRequest(held(tmp_path), (2,), targets=2, peers=folder)
    study = run(wanted, lambda _weights: Midslice(), TargetList())
    (cell,) = study.cells
    assert cell.methods["through-plane"].psnr_db > 10.0
    assert [facts.steps for facts in cell.peers] == [1]
    written = card(study.cells, study.rows)
    assert "| through-plane | 0.0 | 1 | one |" in written
    kept = json.loads(json.dumps(study.as_json()))
    assert kept["cells"][0]["peers"][0]["patients"] == ["one"]


def test_a_peer_does_not_judge_a_patient_that_it_was_trained_on(
    patients: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "peers"
    trainer("through-plane")(order_of(patients, folder / "through-plane", 1), told_nothing)
    facts = folder / "through-plane" / peers.FACTS
    written = json.loads(facts.read_text())
    facts.write_text(json.dumps({**written, "patients": ["left"]}))
    wanted = StudyRequest(held(tmp_path), (2,), targets=1, peers=folder)
    study = run(wanted, lambda _weights: Midslice(), TargetList())
    assert "through-plane" not in study.cells[0].methods

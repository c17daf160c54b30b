"""One thread, so that results repeat and nobody waits for a busy core; two made patients."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import torch

from inference.training.data import Patient, load_patients
from tests.models.made import made_hu, write_npz


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads(), cv2.getNumThreads()
    set_threads(1, 1)
    yield
    set_threads(*before)


@pytest.fixture(autouse=True)
def one_thread_again() -> None:
    """A test before may have set others, as a job does."""
    set_threads(1, 1)


def set_threads(of_torch: int, of_opencv: int) -> None:
    torch.set_num_threads(of_torch)
    cv2.setNumThreads(of_opencv)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made patients, each a folder with an NPZ volume: a chest's field of view and a head's."""
    root = tmp_path_factory.mktemp("data")
    write_npz(root / "body", made_hu(), (1.0, 6.0, 6.0))
    write_npz(root / "head", made_hu(20), (1.5, 1.0, 1.0))
    return root


@pytest.fixture(scope="module")
def patients(data: Path) -> tuple[Patient, ...]:
    return load_patients(data, "ct-train")

"""Made head CT pictures in the brain window, some with a bright spot, as patients and as files."""

from pathlib import Path

import numpy as np
from numpy.random import default_rng
from PIL import Image

from inference.training.head_ct import TYPES, HeadPatient

SIDE = 64  # small pictures for quick trainings


def made_patient(number: int, *, bleeds: bool, side: int = SIDE, slices: int = 3) -> HeadPatient:
    """A grey disc; a bright spot in the middle slice of one who bleeds."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2.0
    disc = np.where(np.hypot(y, x) < 0.45 * side, 90.0, 0.0)
    noise = default_rng(number).normal(0.0, 5.0, (slices, side, side))
    pictures = np.where(disc > 0, disc + noise, 0.0)
    truth = np.zeros(slices, bool)
    if bleeds:
        truth[slices // 2] = True
        spot = np.hypot(y, x - 0.1 * side) < 0.15 * side
        pictures[slices // 2][spot] = 190.0
    types = {name: truth & (name == TYPES[number % len(TYPES)]) for name in TYPES}
    levels = pictures.clip(0, 255).astype(np.uint8)
    return HeadPatient(f"p{number}", number % 2, 10.0 + 10 * number, levels, truth, types)


def write_data(folder: Path) -> None:
    """The form of the data set: a strip of pictures a patient, and two tables."""
    labels = [",".join(("patient", "slice", "file", "index", "haemorrhage", *TYPES, "fold"))]
    patients = ["patient,age_years,sex,slices,fold"]
    for number in range(4):
        head = made_patient(number, bleeds=number in (0, 1), side=256)
        Image.fromarray(head.pictures.reshape(-1, 256)).save(folder / f"{head.name}.png")
        patients.append(f"{head.name},{head.age_years},F,3,{head.fold}")
        for index, bleeds in enumerate(head.bleeds):
            types = [str(int(head.types[name][index])) for name in TYPES]
            facts = [head.name, index + 1, f"{head.name}.png", index, int(bleeds)]
            labels.append(",".join(map(str, [*facts, *types, head.fold])))
    (folder / "patients.csv").write_text("\n".join(patients), encoding="utf-8")
    (folder / "labels.csv").write_text("\n".join(labels), encoding="utf-8")

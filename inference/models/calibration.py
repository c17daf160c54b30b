"""What training found out about a network's weights on patients that they had not seen.

The figures lie beside the weights as JSON, made by `midslice calibrate` and never by hand; they
name the weights that they belong to, and count for no others.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from inference.errors import ModelLoadError
from inference.models.guards import CLASSICAL, DIS

# What files of earlier versions lack, and that it did nothing then.
LATER = {"noise": 0.0, "shared": 0.0}
DIGITS = 6  # a figure has no more that mean anything, and files stay comparable


@dataclass(frozen=True)
class Calibration:
    """The prior of the gate, and how a network's scale becomes an expected error.

    The expected error of a slice in HU is `factor` x scale^`power` x (4 t (1 - t))^p x
    (noise / 20 HU)^`noise` x e^(`overlap` x thickness / gap), times what the surveys of its series
    say. The scale is the network's own, mean over the body, the noise that of A and C; p is `place`
    + `shared` x thickness / gap, for a thick slice near A has most of its noise from A.
    """

    weight: float = 1.0  # the best mixture of network and flow blend, 0 to 1
    apart: float = 0.1  # how far those two lie apart, as a share of the flow blend's error
    strength: float = 4.0  # how many surveys this prior knowledge counts for
    classical: str = DIS  # the best classical candidate
    factor: float = 1.0
    power: float = 1.0
    place: float = 0.0
    overlap: float = 0.0
    shared: float = 0.0
    noise: float = 0.0
    doubled: float = 1.0  # expected / true error at a gap over the same at twice that gap
    interval: float = 2.3  # times the expected error of a pixel: 90 % of the errors are below
    is_fitted: bool = False

    @property
    def digest(self) -> str:
        """Changes with every figure: calibration changes results as weights do."""
        values = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(values.encode("ascii")).hexdigest()[:8]


def calibration_path(weights: Path) -> Path:
    """Where the calibration of a weights file lies."""
    return weights.with_suffix(".json")


def load_calibration(path: Path, weights_sha256: str) -> Calibration:
    """The calibration of these weights; where there is none, one that promises nothing.

    A file that is no calibration raises ModelLoadError; one of other weights is passed over.
    """
    if not path.exists():
        return Calibration()
    try:
        stored = json.loads(path.read_text(encoding="ascii"))
        if stored["weights_sha256"] != weights_sha256:
            return Calibration()
        return _from_json({**LATER, **stored["figures"]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{path}: not a calibration: {error}") from error


def _from_json(figures: Mapping[str, object]) -> Calibration:
    wanted = {field.name for field in fields(Calibration)} - {"is_fitted"}
    if set(figures) != wanted:
        raise ValueError(f"figures are {sorted(figures)}, not {sorted(wanted)}")
    if figures["classical"] not in CLASSICAL:
        raise ValueError(f"classical = {figures['classical']!r}: allowed is one of {CLASSICAL}")
    numbers = {name: float(str(value)) for name, value in figures.items() if name != "classical"}
    return Calibration(classical=str(figures["classical"]), is_fitted=True, **numbers)


def save_calibration(
    calibration: Calibration, path: Path, weights_sha256: str, provenance: Mapping[str, object]
) -> None:
    """Write the figures with where they come from; the same input gives the same bytes."""
    figures = asdict(calibration)
    del figures["is_fitted"]
    rounded = {
        name: round(value, DIGITS) if isinstance(value, float) else value
        for name, value in figures.items()
    }
    whole = {"weights_sha256": weights_sha256, "figures": rounded, "provenance": provenance}
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="ascii")

"""What a run of the demo is made of, and the node's configuration for it."""

import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from node.demo import scanner
from node.demo.scanner import Peer

AE_TITLE = "MIDSLICE"
RATIO_TOLERANCE = 0.01  # of gap to target spacing: 5.02 mm at 2.5 mm are two slices, not three

CONFIG = """\
# Written by the demo. What each key means stands in the config.toml of the product.
[node]
ae_title = "{ae_title}"
host = "127.0.0.1"
port = 0
allowed_ae_titles = ["{scanner}"]

[storage]
folder = "node"
min_free_gb = 0.2

[completion]
quiet_seconds = {quiet_seconds}

[delivery]
retry_seconds = [1.0, 5.0]

[web]
port = 0

[[destination]]
name = "pacs"
ae_title = "{pacs.ae_title}"
host = "{pacs.host}"
port = {pacs.port}

[[route]]
name = "ct-slices"
match = {{ Modality = "CT", ImageType = {{ has = "AXIAL" }}, gap_mm = {{ min = 2.0 }} }}
model = "{model}"
target_spacing_mm = {target_spacing_mm}
destinations = ["pacs"]
"""


@dataclass(frozen=True)
class Settings:
    """What a demo run is made of; the defaults are what people see."""

    model: str = ""  # empty = "midslice" where its weights are, else "linear"
    target_spacing_mm: float = 1.25
    quiet_seconds: float = 2.0
    slices: int = 0  # of the received series, from the feet; 0 = all
    pacs: str = "auto"  # auto, orthanc, built-in

    @property
    def model_used(self) -> str:
        """The model that the route names."""
        weights = files("inference") / "models" / "midslice.safetensors"
        return self.model or ("midslice" if weights.is_file() else "linear")

    def factor(self, gap_mm: float) -> int:
        """Slices out per slice in, for this gap."""
        return math.ceil(gap_mm / self.target_spacing_mm - RATIO_TOLERANCE)

    def configure(self, path: Path, destination: Peer) -> Path:
        """Write the node's configuration, as a user would."""
        text = CONFIG.format(
            ae_title=AE_TITLE,
            scanner=scanner.AE_TITLE,
            quiet_seconds=self.quiet_seconds,
            pacs=destination,
            model=self.model_used,
            target_spacing_mm=self.target_spacing_mm,
        )
        path.write_text(text, encoding="utf-8")
        return path

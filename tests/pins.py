"""Writes the files of pinned packages with the hashes of what the package index holds of them.

`python -m tests.pins` after a change of `constraints.txt`. `requirements.txt` is what the product
needs at run time, `requirements-dev.txt` all that `constraints.txt` names. Torch is in neither: a
site takes the build for its processor from an index of its choice, and has to trust that one.
"""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
INDEX = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple")
JSON = "application/vnd.pypi.simple.v1+json"  # PEP 691
PRODUCT = "midslice"
TORCH = "torch"
FITS = re.compile(r"-(py3|py2\.py3|cp311|cp3\d+-abi3)[^/]*\.whl$")
HEAD = "# Made by python -m tests.pins from constraints.txt; not torch, which a site chooses.\n"


def pinned() -> dict[str, str]:
    """Version by name, as `constraints.txt` has them."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version.split(";")[0].strip() for name, version in pairs}


def needed(extras: Iterable[str] = ("postgresql",)) -> set[str]:
    """The packages that the product needs at run time, those behind torch included."""
    names: set[str] = set()
    waiting = [Requirement(f"{PRODUCT}[{','.join(extras)}]")]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        key = name if not wanted.extras else f"{name}[{','.join(sorted(wanted.extras))}]"
        if key in names:
            continue
        names.add(key)
        for text in distribution(wanted.name).requires or ():
            further = Requirement(text)
            marker = further.marker
            if marker is None or any(
                marker.evaluate({"extra": extra}) for extra in (*wanted.extras, "")
            ):
                waiting.append(further)
    return {key.partition("[")[0] for key in names} - {PRODUCT}


def chosen(versions: dict[str, str]) -> dict[str, str]:
    """SHA-256 of the file that pip takes of each package here, from the indexes of its settings."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
    wanted = [f"{name}=={version}" for name, version in versions.items()]
    command += ["--ignore-installed", "--only-binary", ":all:", "--report", "-", *wanted]
    report = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return {
        canonicalize_name(item["metadata"]["name"]): item["download_info"]["archive_info"][
            "hashes"
        ]["sha256"]
        for item in report["install"]
    }


def others(name: str, version: str) -> set[str]:
    """SHA-256 of each wheel of the index that this Python takes on any machine."""
    asked = urllib.request.Request(f"{INDEX}/{name}/", headers={"Accept": JSON})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        files = json.load(answer)["files"]
    stem = re.compile(rf"{re.escape(name)}-{re.escape(version)}-", re.IGNORECASE)
    return {
        file["hashes"]["sha256"]
        for file in files
        if stem.match(re.sub(r"[_.-]+(?=[a-z])", "-", file["filename"]))
        and FITS.search(file["filename"])
    }


def lines(versions: dict[str, str]) -> Iterator[str]:
    """The requirements, each with its hashes."""
    here = chosen(versions)
    for name, version in sorted(versions.items()):
        known = sorted({here[name]} | others(name, version))
        yield " \\\n".join([f"{name}=={version}", *(f"    --hash=sha256:{it}" for it in known)])


def main() -> None:
    """Write both files."""
    everything = {name: version for name, version in pinned().items() if name != TORCH}
    runtime = {name: everything[name] for name in needed() if name in everything}
    for file, versions in (("requirements.txt", runtime), ("requirements-dev.txt", everything)):
        (ROOT / file).write_text(HEAD + "\n".join(lines(versions)) + "\n")
        sys.stdout.write(f"{file}: {len(versions)} packages\n")


if __name__ == "__main__":
    main()

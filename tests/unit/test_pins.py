"""The pinned packages: one version everywhere, each with a hash, none of the product's missing."""

import re

import pytest

from tests.pins import ROOT, TORCH, needed, pinned

HASHES = r"(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+"
PINNED = re.compile(rf"^([a-z0-9-]+)==(\S+) \\\n({HASHES})", re.MULTILINE)


def read(file: str) -> dict[str, str]:
    """Version by name; only packages with a hash are read."""
    text = (ROOT / file).read_text()
    found = {name: version for name, version, _ in PINNED.findall(text)}
    assert len(found) == text.count("==")
    return found


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_every_package_has_the_version_of_the_constraints_and_a_hash(file: str) -> None:
    versions = pinned()
    assert {name: versions[name] for name in read(file)} == read(file)


def test_no_package_is_missing() -> None:
    assert read("requirements-dev.txt").keys() == pinned().keys() - {TORCH}
    assert read("requirements.txt").keys() == (needed() & pinned().keys()) - {TORCH}

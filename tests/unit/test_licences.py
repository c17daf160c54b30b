"""What the product needs at run time may be used and passed on without the GPL."""

import re
from pathlib import Path

import pytest

from tests import licences

ROOT = Path(__file__).parents[2]


def test_the_document_lists_every_package_with_its_licence() -> None:
    document = (ROOT / "LICENSES.md").read_text(encoding="utf-8")
    assert document.endswith(licences.table())


@pytest.mark.parametrize("name", licences.packages())
def test_a_package_has_a_licence_and_it_is_not_the_gpl(name: str) -> None:
    licence = licences.licence(name)
    assert licence
    assert not re.search(r"(?<!L)GPL", licence)


def test_a_package_of_the_gpl_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(licences.NAMED, "pydicom", "GPL-3.0-only")
    assert re.search(r"(?<!L)GPL", licences.licence("pydicom"))

"""What tells one release of a model from the next, without importing it."""

import sys
from pathlib import Path

import pytest

from inference.request import ModelSpec
from node.work.jobs import fingerprint


def test_other_weights_or_other_code_give_another_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site_ai"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "net.py").write_text("class Net: ...\n")
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(b"one")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = ModelSpec("site", "site_ai.net:Net", weights)
    first = fingerprint(spec)
    assert fingerprint(spec) == first
    weights.write_bytes(b"two")
    second = fingerprint(spec)
    assert second != first
    (package / "net.py").write_text("class Net:\n    pass\n")
    assert fingerprint(spec) not in {first, second}
    third = fingerprint(spec)
    (package / "parts.py").write_text("LIMIT = 1\n")  # the model may import it
    assert fingerprint(spec) != third
    fourth = fingerprint(spec)
    weights.with_suffix(".json").write_text("{}")  # its calibration
    assert fingerprint(spec) != fourth
    assert "site_ai" not in sys.modules


def test_a_module_that_is_not_there_has_a_fingerprint_too() -> None:
    assert fingerprint(ModelSpec("site", "no_such_package.net:Net"))

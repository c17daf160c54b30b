"""Loading a model: by name, by a site's own class, and all that can be wrong with it."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import inference
from inference.errors import ModelLoadError
from inference.registry import (
    REGISTERED,
    RegisteredModel,
    choose_device,
    fingerprint,
    load,
    load_once,
)
from inference.request import ModelSpec
from tests.unit.inference.made import HERE

SITE = """
class Own:
    name, version, weights_sha256, produces = "own", "2", "", "slices"

    def __init__(self, weights, device):
        self.weights, self.device = weights, device

    def plan(self, geometry, parameters):
        return []

    def run(self, step, slices, limits):
        raise NotImplementedError


class Half:
    name = "half"


class Angry:
    def __init__(self):
        raise ValueError("no such layer")


number = 3
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a site, importable by name."""
    name = "site_" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]
    (tmp_path / f"{name}.py").write_text(SITE)
    (tmp_path / f"{name}_broken.py").write_text("def (")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_the_models_of_the_product_are_listed_without_importing_torch() -> None:
    script = (
        "import sys; import inference.stacks, inference.registry, inference.pipeline\n"
        "print([entry.name for entry in inference.registry.REGISTERED])\n"
        "assert not {'torch', 'cv2', 'highdicom', 'scipy'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert str([entry.name for entry in REGISTERED]) in done.stdout
    assert all(entry.takes for entry in REGISTERED)


def test_a_registered_model_is_loaded_by_its_name() -> None:
    model = load(ModelSpec("linear"))
    assert (model.name, model.produces, model.weights_sha256) == ("linear", "slices", "")


def test_a_sites_own_class_is_loaded_with_its_weights_and_device(site: str, tmp_path: Path) -> None:
    weights = tmp_path / "own.safetensors"
    weights.write_bytes(b"numbers")
    digest = hashlib.sha256(b"numbers").hexdigest()
    spec = ModelSpec("own", f"{site}:Own", weights, digest.upper())
    model = load(spec, "cuda:1")
    assert vars(model) == {"weights": weights, "device": "cuda:1"}


def test_a_class_that_takes_nothing_is_given_nothing() -> None:
    assert load(ModelSpec("halfway", f"{HERE}:Halfway"), "cuda").name == "halfway"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (ModelSpec("lineal"), "known: linear, midslice"),
        (ModelSpec("x", "no_colon"), "allowed is package.module:Class"),
        (ModelSpec("x", "nowhere.to.be.found:Model"), "nowhere"),
        (ModelSpec("x", f"{HERE}:Missing"), "Missing"),
        (ModelSpec("x", f"{HERE}:HERE"), "is not a class"),
    ],
)
def test_what_cannot_be_loaded_says_which_and_why(spec: ModelSpec, words: str) -> None:
    with pytest.raises(ModelLoadError, match=words):
        load(spec)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (":Half", "lacks version, weights_sha256, produces, plan, run"),
        (":Angry", "no such layer"),
        (":number", "is not a class"),
        ("_broken:Model", "broken"),
        (":Own", "weights"),  # this one cannot be made without
    ],
)
def test_a_faulty_class_of_a_site_is_named(site: str, end: str, words: str) -> None:
    with pytest.raises(ModelLoadError, match=words):
        load(ModelSpec("own", site + end))


def test_weights_of_another_digest_or_no_weights_are_refused(site: str, tmp_path: Path) -> None:
    weights = tmp_path / "own.safetensors"
    weights.write_bytes(b"numbers")
    with pytest.raises(ModelLoadError, match="the configuration says 00"):
        load(ModelSpec("own", f"{site}:Own", weights, "00" * 32))
    with pytest.raises(ModelLoadError, match="cannot be read"):
        load(ModelSpec("own", f"{site}:Own", tmp_path / "gone", ""))


def test_a_process_loads_a_model_once_until_its_weights_change(site: str, tmp_path: Path) -> None:
    weights = tmp_path / "own.safetensors"
    weights.write_bytes(b"numbers")
    spec = ModelSpec("own", f"{site}:Own", weights)
    first = load_once(spec)
    assert load_once(ModelSpec("own", f"{site}:Own", weights)) is first
    assert load_once(spec, "cuda:1") is not first
    weights.write_bytes(b"others")
    assert load_once(spec) is not first


def test_weights_that_change_to_wrong_ones_are_refused(site: str, tmp_path: Path) -> None:
    weights = tmp_path / "own.safetensors"
    weights.write_bytes(b"numbers")
    spec = ModelSpec("own", f"{site}:Own", weights, hashlib.sha256(b"numbers").hexdigest())
    load_once(spec)
    weights.write_bytes(b"others")
    with pytest.raises(ModelLoadError, match="the configuration says"):
        load_once(spec)


def test_a_named_device_is_taken_as_it_is() -> None:
    assert choose_device("cuda:1", ModelSpec("midslice")) == "cuda:1"
    assert choose_device("auto", ModelSpec("midslice")) in ("cpu", "cuda")


def test_a_model_without_use_for_a_device_runs_on_the_cpu() -> None:
    assert choose_device("cuda:1", ModelSpec("linear")) == "cpu"
    assert choose_device("cuda:1", ModelSpec("linear", f"{HERE}:Halfway")) == "cuda:1"


def test_other_weights_calibration_or_code_give_a_sites_model_another_fingerprint(
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
    fingerprints = [fingerprint(spec)]
    assert fingerprint(spec) == fingerprints[0]
    for path, text in (
        (weights, "two"),
        (package / "net.py", "class Net:\n    pass\n"),
        (package / "parts.py", "LIMIT = 1\n"),  # the model may import it
        (weights.with_suffix(".json"), "{}"),  # its calibration
    ):
        path.write_text(text)
        fingerprints.append(fingerprint(spec))
    assert len(set(fingerprints)) == 5
    assert "site_ai" not in sys.modules


def test_a_module_that_is_not_there_has_a_fingerprint_too() -> None:
    assert fingerprint(ModelSpec("site", "no_such_package.net:Net"))


def test_the_products_models_have_a_fingerprint_of_version_weights_and_calibration_alone(
    tmp_path: Path,
) -> None:
    """Rewriting their code changes no job's key, so that a re-send runs no inference again."""
    models = tmp_path / "inference" / "models"
    shutil.copytree(Path(inference.__file__).parent, models.parent)
    script = (
        "from inference.registry import *\n"
        "print(*(fingerprint(ModelSpec(e.name, e.factory)) for e in REGISTERED))"
    )

    def fingerprints() -> list[str]:
        command = [sys.executable, "-B", "-c", script]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.split()

    before = fingerprints()
    assert len(set(before)) == len(REGISTERED)
    for source in models.rglob("*.py"):
        source.write_text("# rewritten\n" + source.read_text())
    assert fingerprints() == before
    midslice = [entry.name for entry in REGISTERED].index("midslice")
    for name in ("midslice.json", "midslice.safetensors"):
        with (models / name).open("ab") as file:
            file.write(b" ")
        after = fingerprints()
        assert after[midslice] != before[midslice]
        assert after[:midslice] == before[:midslice]
        assert after[midslice + 1 :] == before[midslice + 1 :]
        before = after


@pytest.mark.parametrize("entry", REGISTERED, ids=lambda entry: entry.name)
def test_the_version_in_the_list_is_that_of_the_model(entry: RegisteredModel) -> None:
    model = load(entry.spec)
    assert (model.version, model.produces) == (entry.version, entry.produces)

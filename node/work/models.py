"""The models that a configuration names, and what tells one release of a model from the next."""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from inference import registry
from inference.request import ModelSpec
from node.config import Config


def specs(settings: Config) -> Mapping[str, ModelSpec]:
    """By name: the models that come with the product, and those of the site."""
    found = {e.name: ModelSpec(e.name, e.factory) for e in registry.registered()}
    for entry in settings.models:
        found[entry.name] = ModelSpec(
            entry.name, entry.class_path, entry.weights, entry.weights_sha256
        )
    return found


def fingerprint(spec: ModelSpec) -> str:
    """Changes when the code or the weights of a model do; the model is not imported.

    It is part of a job's key: a series that is sent again after an update of its model is
    processed again, instead of delivering what the old model made.
    """
    digest = hashlib.sha256(str(spec.factory).encode())
    for path in _files(spec):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _files(spec: ModelSpec) -> list[Path]:
    """The sources of its package, weights and calibration beside it, or as configured."""
    top, *rest = str(spec.factory).partition(":")[0].split(".")
    found = importlib.util.find_spec(top)  # of the top alone: for more, Python imports the package
    files = []
    for folder in found.submodule_search_locations or () if found else ():
        source = Path(folder).joinpath(*rest).with_suffix(".py")
        files += [source.with_suffix(suffix) for suffix in (".safetensors", ".json")]
        package = source.parent if rest else Path(folder)
        files += sorted(package.glob("*.py"))  # a model's code may be several modules
    if found is not None and found.origin is not None and not rest:
        files.append(Path(found.origin))
    if spec.weights is not None:
        files += [spec.weights, spec.weights.with_suffix(".json")]
    return [file for file in files if file.is_file()]

"""Which models there are, and how one is loaded; nothing here imports a model before that."""

import hashlib
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from inference.errors import ModelLoadError
from inference.model import Model
from inference.request import ModelSpec

MEMBERS = ("name", "version", "weights_sha256", "produces", "plan", "run")


@dataclass(frozen=True)
class Entry:
    """A model that comes with the product."""

    name: str
    factory: str  # "package.module:Class"
    takes: str  # what input it takes, for people
    uses_device: bool = True


ENTRIES = (
    Entry(
        "linear",
        "inference.models.classical:Linear",
        "CT stacks of 2 slices or more; linear interpolation, the yardstick",
        uses_device=False,
    ),
    Entry(
        "midslice",
        "inference.models.midslice:Midslice",
        "CT stacks of 2 slices or more; factor 2 to 10 or a target spacing",
    ),
)


def registered() -> tuple[Entry, ...]:
    """The models that a configuration can name without a factory."""
    return ENTRIES


def load(spec: ModelSpec, device: str = "cpu") -> Model:
    """The model that a specification names; raises ModelLoadError, saying which and why."""
    factory = spec.factory or _factory_of(spec.name)
    made = _class_of(factory)
    arguments = _arguments(spec, made, device)
    try:
        model = made(**arguments)
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise ModelLoadError(f"model {spec.name} ({factory}): {error}") from error
    missing = [member for member in MEMBERS if not hasattr(model, member)]
    if missing:
        raise ModelLoadError(f"model {spec.name} ({factory}) lacks {', '.join(missing)}")
    return cast(Model, model)


def choose_device(wanted: str, spec: ModelSpec) -> str:
    """`auto` is the first CUDA device where there is one and the model can use it."""
    known = next((entry for entry in ENTRIES if entry.name == spec.name), None)
    if spec.factory is None and known is not None and not known.uses_device:
        return "cpu"
    if wanted != "auto":
        return wanted
    torch = importlib.import_module("torch")
    return "cuda" if torch.cuda.is_available() else "cpu"


def _factory_of(name: str) -> str:
    for entry in ENTRIES:
        if entry.name == name:
            return entry.factory
    known = ", ".join(entry.name for entry in ENTRIES)
    raise ModelLoadError(
        f"no model is named {name!r}; known: {known}; or give package.module:Class"
    )


def _class_of(factory: str) -> type:
    module, _, name = factory.partition(":")
    if not module or not name:
        raise ModelLoadError(f"factory = {factory!r}: allowed is package.module:Class")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ModelLoadError(f"{factory}: {error}") from error
    if not isinstance(found, type):
        raise ModelLoadError(f"{factory}: is no class")
    return found


def _arguments(spec: ModelSpec, made: type, device: str) -> Mapping[str, object]:
    taken = inspect.signature(made).parameters
    if spec.weights is None:
        return {"device": device} if "device" in taken else {}
    _check_weights(spec.weights, spec.weights_sha256)
    return {"weights": spec.weights, "device": device}


def _check_weights(path: Path, expected: str) -> None:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelLoadError(f"{path}: the weights cannot be read: {error}") from error
    if expected and digest != expected.lower():
        raise ModelLoadError(f"{path}: SHA-256 is {digest}, the configuration says {expected}")

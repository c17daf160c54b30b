"""The models there are, their fingerprints and their loading; none is imported before that."""

import functools
import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from inference.errors import ModelLoadError
from inference.model import Model, Produces
from inference.request import ModelSpec

KEPT_MODELS = 16  # by one process; the one that was asked for longest ago goes first
MEMBERS = ("name", "version", "weights_sha256", "produces", "plan", "run")


@dataclass(frozen=True)
class RegisteredModel:
    """A model that comes with the product."""

    name: str
    version: str  # that of the class, which is not imported for it
    factory: str  # "package.module:Class"
    takes: str  # what input it takes, for people
    uses_device: bool = True
    produces: Produces = "slices"

    @property
    def spec(self) -> ModelSpec:
        """The name and factory by which a request asks for it."""
        return ModelSpec(self.name, self.factory, produces=self.produces)


# The models that a configuration can name without a factory.
REGISTERED = (
    RegisteredModel(
        "linear",
        "1.0.0",
        "inference.models.classical:Linear",
        "CT stacks of 2 slices or more; linear interpolation, the yardstick",
        uses_device=False,
    ),
    RegisteredModel(
        "midslice",
        "1.4.1",
        "inference.models.midslice:Midslice",
        "CT stacks of 2 slices or more; factor 2 to 10 or a target spacing",
    ),
    RegisteredModel(
        "brain",
        "1.0.0",
        "inference.models.brain.brain:Brain",
        "MR heads, T1-weighted, 40 slices or more, gaps up to 3 mm; the mask of the brain",
        produces="mask",
    ),
    RegisteredModel(
        "brain-unet",
        "1.0.0",
        "inference.models.brain.unet:BrainUNet",
        "as brain; trained on four heads, to be trained on a site's own",
        produces="mask",
    ),
    RegisteredModel(
        "haemorrhage",
        "1.0.0",
        "inference.models.haemorrhage.haemorrhage:Haemorrhage",
        "CT heads without contrast, 10 slices or more over 80 mm, gaps up to 6 mm; scores",
        produces="scores",
    ),
    RegisteredModel(
        "nodules",
        "1.0.0",
        "inference.models.nodule.nodule:Nodule",
        "CT chests, axial, 60 slices or more over 100 mm, gaps up to 3 mm; nodules and lungs",
        produces="findings",
    ),
)


def fingerprint(spec: ModelSpec) -> str:
    """A digest that changes with what a model makes of a series; the model is not imported.

    It is part of a job's key: a series that is sent again after an update of its model is
    processed again, instead of delivering what the old model made. Version, weights and
    calibration tell one release of the product's models from the next. The version of a site's
    own class is not known without importing it: the sources of its package stand for it.
    """
    own = next((entry for entry in REGISTERED if spec.factory == entry.factory), None)
    module = str(spec.factory).partition(":")[0]
    file = _source_of(module)
    digest = hashlib.sha256((f"{own.name} {own.version}" if own else module).encode())
    if own is None and file is not None:
        is_alone = "." not in module and file.name != "__init__.py"
        for path in [file] if is_alone else sorted(file.parent.glob("*.py")):
            _add(digest, path)  # of a package all: a model's code may be several modules
    weights = spec.weights or (file.with_suffix(".safetensors") if file else None)
    if weights is not None:
        _add(digest, weights)
        _add(digest, weights.with_suffix(".json"))  # its calibration
    return digest.hexdigest()[:16]


def _source_of(module: str) -> Path | None:
    """The file of a module, or of a package; None where there is none."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)  # of the top alone: for more, Python imports the package
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin else None
    for folder in spec.submodule_search_locations or ():
        path = Path(folder).joinpath(*rest)
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return None


def _add(digest: "hashlib._Hash", path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())


def load(spec: ModelSpec, device: str = "cpu") -> Model:
    """The model that a specification names; raises ModelLoadError, saying which and why."""
    factory = spec.factory or _factory_of(spec.name)
    model_class = _class_of(factory)
    arguments = _arguments(spec, model_class, device)
    try:
        model = model_class(**arguments)
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise ModelLoadError(f"model {spec.name} ({factory}): {error}") from error
    missing = [member for member in MEMBERS if not hasattr(model, member)]
    if missing:
        raise ModelLoadError(f"model {spec.name} ({factory}) lacks {', '.join(missing)}")
    return cast(Model, model)


def load_once(spec: ModelSpec, device: str = "cpu") -> Model:
    """The model that this process has loaded before, a new one where its files have changed."""
    return _kept(spec, device, fingerprint(spec))


@functools.lru_cache(maxsize=KEPT_MODELS)
def _kept(spec: ModelSpec, device: str, digest: str) -> Model:
    return load(spec, device)


def choose_device(wanted: str, spec: ModelSpec) -> str:
    """`auto` is the first CUDA device where there is one and the model can use it."""
    deviceless = {entry.name for entry in REGISTERED if not entry.uses_device}
    if spec.factory is None and spec.name in deviceless:
        return "cpu"
    if wanted != "auto":
        return wanted
    torch = importlib.import_module("torch")
    return "cuda" if torch.cuda.is_available() else "cpu"


def spec_of(name: str) -> ModelSpec:
    """The model of the product with this name; any other name is a model of slices."""
    return next((entry.spec for entry in REGISTERED if entry.name == name), ModelSpec(name))


def _factory_of(name: str) -> str:
    for entry in REGISTERED:
        if entry.name == name:
            return entry.factory
    known = ", ".join(entry.name for entry in REGISTERED)
    raise ModelLoadError(
        f"no model is named {name!r}; known: {known}; or give package.module:Class"
    )


def _class_of(factory: str) -> type:
    module, _, name = factory.partition(":")
    if not module or not name:
        raise ModelLoadError(f"factory = {factory!r}: allowed is package.module:Class")
    try:
        model_class = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ModelLoadError(f"{factory}: {error}") from error
    if not isinstance(model_class, type):
        raise ModelLoadError(f"{factory}: is not a class")
    return model_class


def _arguments(spec: ModelSpec, model_class: type, device: str) -> Mapping[str, object]:
    parameters = inspect.signature(model_class).parameters
    if spec.weights is None:
        return {"device": device} if "device" in parameters else {}
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

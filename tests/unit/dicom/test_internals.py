"""What the node relies on in pynetdicom beyond its public interface: in one file, on one list."""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pynetdicom
import pytest

from node.dicom import upper_layer

ROOT = Path(__file__).parents[3]
PRIVATE = re.compile(r"_[A-Za-z]\w*$")
LISTED = {(owner, name) for owner, name, _ in upper_layer.INTERNALS}


def of_library(name: str | None) -> bool:
    return (name or "").partition(".")[0] == "pynetdicom"


def imported(tree: ast.AST) -> set[str]:
    """The private modules of the library that are imported, and the private names."""
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and of_library(n.module)]
    words = [word for n in nodes for word in str(n.module).split(".")]
    return {
        word
        for word in (*words, *(alias.name for n in nodes for alias in n.names))
        if PRIVATE.match(word)
    }


def of_others(tree: ast.AST) -> set[str]:
    """Private attributes of anything but `self`."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and PRIVATE.match(node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }


def members(source: str) -> set[str]:
    """The methods of a class, and the attributes that it gives itself."""
    tree = ast.parse(textwrap.dedent(source))
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assigned = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    declared = {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return defined | assigned | declared


def overridden(module: ModuleType) -> set[str]:
    """Private members of the library's classes that a class of ours has too."""
    names: set[str] = set()
    for cls in vars(module).values():
        if not inspect.isclass(cls) or cls.__module__ != module.__name__:
            continue
        for base in cls.__mro__[1:]:
            if of_library(base.__module__):
                names |= members(inspect.getsource(cls)) & members(inspect.getsource(base))
    return {name for name in names if PRIVATE.match(name)}


def files_with_pynetdicom() -> Iterator[Path]:
    """Those of the product; the demonstration's peers stand for programs of other makers."""
    for package in ("node", "inference", "storage"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "pynetdicom" in path.read_text() and "demo" not in path.parts:
                yield path


def used_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if not imported_anything(tree):
        return set()
    return imported(tree) | of_others(tree) | overridden(importlib.import_module(name))


def imported_anything(tree: ast.AST) -> bool:
    return any(isinstance(n, ast.ImportFrom) and of_library(n.module) for n in ast.walk(tree))


def test_one_file_alone_uses_private_names_of_the_library() -> None:
    users = {path.name for path in files_with_pynetdicom() if used_in(path)}
    assert users == {"upper_layer.py"}


def test_every_private_name_that_is_used_is_on_the_list_and_no_other() -> None:
    used = used_in(Path(upper_layer.__file__))
    listed = {word for owner, name in LISTED for word in (*owner.split("."), name)}
    assert used == {word for word in listed if PRIVATE.match(word)}


@pytest.mark.parametrize(("owner", "name", "parameters"), upper_layer.INTERNALS)
def test_the_installed_release_has_it_as_it_is_relied_on(
    owner: str, name: str, parameters: str | None
) -> None:
    module_name, _, class_name = owner.rpartition(".")
    if not class_name[0].isupper():
        source = inspect.getsource(importlib.import_module(owner))
        assert re.search(rf"^\s*(class )?{name}\b", source, re.MULTILINE)
        return
    cls = getattr(importlib.import_module(module_name), class_name)
    assert name in members(inspect.getsource(cls))
    if parameters is not None:
        assert list(inspect.signature(getattr(cls, name)).parameters)[1:] == (
            parameters.split(", ") if parameters else []
        )


def test_the_release_is_the_one_that_the_list_was_made_for() -> None:
    assert pynetdicom.__version__.startswith("3.0.")  # another may do the same under other names

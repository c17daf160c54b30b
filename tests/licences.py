"""The licences of all packages that the product needs at run time, as the table of LICENSES.md.

Run `python -m tests.licences` to print it anew: the packages are those that the installed product
requires, with what they require themselves, on any machine.
"""

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PRODUCT = "midslice[postgresql,cluster]"
# Packages whose metadata give a whole text, a classifier or nothing, with their licence.
NAMED = {
    "highdicom": "MIT",
    "jinja2": "BSD-3-Clause",
    "markdown-it-py": "MIT",
    "mdurl": "MIT",
    "mpmath": "BSD-3-Clause",
    "opencv-python-headless": "Apache-2.0",
    "protobuf": "BSD-3-Clause",
    "pydicom": "MIT",
    "pylibjpeg": "MIT",
    "pynetdicom": "MIT",
    "ray": "Apache-2.0",
    "safetensors": "Apache-2.0",
    "scipy": "BSD-3-Clause",
    "shellingham": "ISC",
    "simpleitk": "Apache-2.0",
    "sympy": "BSD-3-Clause",
}
LONGEST = 120  # characters of a licence's name; what is longer is its text


def requirements(name: str, extras: frozenset[str] = frozenset()) -> Iterator[Requirement]:
    """The requirements of an installed distribution that hold on this machine."""
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        environments = [{"extra": extra} for extra in ("", *extras)]
        if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
            yield requirement


def packages() -> list[str]:
    """The canonical names of all run-time packages, sorted; the product itself is left out."""
    names: set[str] = set()
    open_ends = [Requirement(PRODUCT)]
    while open_ends:
        parent = open_ends.pop()
        for requirement in requirements(parent.name, frozenset(parent.extras)):
            name = canonicalize_name(requirement.name)
            if name not in names:
                names.add(name)
                open_ends.append(requirement)
    return sorted(names)


def licence(name: str) -> str:
    """The licence of an installed package, as its SPDX expression where it gives one."""
    metadata = distribution(name).metadata
    text = metadata.get("License-Expression") or metadata.get("License") or ""
    first = re.sub(r"\s+", " ", text).strip()
    return NAMED.get(name) or (first if 0 < len(first) <= LONGEST else "")


def table() -> str:
    """The table of LICENSES.md, with a row a package."""
    rows = [f"| {name} | {licence(name)} |" for name in packages() if _is_installed(name)]
    return "\n".join(["| package | licence |", "|---|---|", *rows]) + "\n"


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    print(table(), end="")  # noqa: T201 - its output is a document

"""The real head CT of tests/data, and its files with other attributes."""

from pathlib import Path

from pydicom import dcmread

from tests.phantoms import Edit

HEAD = Path(__file__).parent / "data" / "ct-head"


def head_files() -> list[Path]:
    """One file a slice, in the order of positions."""
    return sorted(HEAD.glob("*.dcm"))


def write(folder: Path, edit: Edit) -> list[Path]:
    """The head, each slice edited."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, path in enumerate(head_files()):
        dataset = dcmread(path)
        edit(dataset, index)
        paths.append(folder / path.name)
        dataset.save_as(paths[-1])
    return paths

"""Pieces of Markdown."""

from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; a bar within a value does not end its cell."""
    lines = [_line(columns), _line(["---"] * len(columns)), *(_line(row) for row in rows)]
    return "\n".join(lines)


def listed(items: Iterable[object], *, empty: str) -> str:
    """Values on one line."""
    return ", ".join(f"`{item}`" for item in items) or empty


def bullets(items: Iterable[str]) -> str:
    """One item a line."""
    return "\n".join(f"- {item}" for item in items)


def _line(cells: Sequence[object]) -> str:
    texts = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(texts)} |"

"""Compares what the product says today with a file that was kept of it.

A golden file is never edited by hand: where a change is meant, `make golden` writes all of them
anew, and the difference stands in the commit.
"""

import difflib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FILES = Path(__file__).with_name("files")
RENEW = "GOLDEN"  # environment: "write" renews the files instead of comparing with them
WIDTH = 100
MOST_LINES = 150  # of a difference that a person reads


def check(name: str, text: str) -> None:
    """Fail, with the lines that differ, where `text` is not what the golden file holds."""
    path = FILES / name
    if os.environ.get(RENEW) == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    golden = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text == golden:
        return
    shown = path.relative_to(FILES.parents[2])
    lines = list(
        difflib.unified_diff(
            golden.splitlines(), text.splitlines(), f"{shown} (golden)", "today", "", "", 2, ""
        )
    )
    left_out = f"\n... {len(lines) - MOST_LINES} more lines" if len(lines) > MOST_LINES else ""
    raise AssertionError(
        f"{shown} differs. Where the change is meant, run `make golden` and commit the file.\n"
        + "\n".join(lines[:MOST_LINES])
        + left_out
    )


def check_json(name: str, value: object, *, sort_keys: bool = False) -> None:
    """The same of a JSON document; the order of its keys counts where it is not sorted."""
    plain = json.loads(json.dumps(value, sort_keys=sort_keys))
    check(name, _laid_out(plain, 0) + "\n")


def _laid_out(value: Any, depth: int) -> str:
    """JSON with a line for everything that fits one: short to keep, and its differences too."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + depth <= WIDTH or not isinstance(value, dict | list) or not value:
        return line
    begin = "\n" + " " * (depth + 1)
    if isinstance(value, list):
        items = [_laid_out(item, depth + 1) for item in value]
        return f"[{begin}{f',{begin}'.join(items)}\n{' ' * depth}]"
    pairs = [
        f"{json.dumps(key, ensure_ascii=False)}: {_laid_out(item, depth + 1)}"
        for key, item in value.items()
    ]
    return f"{{{begin}{f',{begin}'.join(pairs)}\n{' ' * depth}}}"


def rewritten(value: Any, text: Callable[[str], str], by_key: Mapping[str, object]) -> Any:
    """A JSON value with every text rewritten, and fixed values in the place of some keys'."""
    if isinstance(value, dict):
        return {
            key: by_key[key] if key in by_key else rewritten(item, text, by_key)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [rewritten(item, text, by_key) for item in value]
    return text(value) if isinstance(value, str) else value

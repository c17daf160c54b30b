"""What becomes of every case of the table: the verdict, or the very bytes of the derived series.

Bytes are compared by digest, headers apart from pixels, so that a difference says which of them
changed; some whole headers are kept as text, where the difference itself can be read.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from pydicom import Dataset, dcmread

from inference import release
from inference.request import Derived, Failed, ModelSpec, Outcome, Verdict
from inference.stacks import read_headers, set_aside, stacks_of
from tests import phantoms
from tests.golden import golden
from tests.unit.inference.case import Case
from tests.unit.inference.cases import CASES
from tests.unit.inference.made import images, request, unchecked

Ended = dict[str, dict[str, list[dict[str, Any]]]]
DIGITS = 32  # of a digest
# Of the network's slices: they, and so what is thought of them, are the processor's in part.
JUDGEMENT = re.compile(r"expected error \d+ HU, confidence \d\.\d+|\+/- \d+ HU")
LONGEST = 400  # of a value in a header
# What is the run's or the machine's.
VARIES: dict[str, object] = {"seconds": "<seconds>", "batch": "<batch>"}
OF_PIXELS = ("PixelData", "SmallestImagePixelValue", "LargestImagePixelValue")


@pytest.fixture(scope="module", autouse=True)
def _any_build() -> Iterator[None]:
    """Results name the build that made them; here every build has one name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release, "build", lambda: "build 000000000000")
        yield


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """What becomes of each case: by a site's own model, and by one of the product."""
    folder = tmp_path_factory.mktemp("cases")
    return {
        case.title: ends(case, folder / str(number)) for number, case in enumerate(CASES, start=1)
    }


@pytest.mark.filterwarnings("ignore:End of file", "ignore:.*[Ii]nvalid value for VR UI")
def test_every_case_ends_as_it_did(ended: Ended) -> None:
    golden.check_json("derived/cases.json", {title: one["halfway"] for title, one in ended.items()})


@pytest.mark.filterwarnings("ignore:End of file", "ignore:.*[Ii]nvalid value for VR UI")
def test_every_case_ends_as_it_did_with_interpolation(ended: Ended) -> None:
    short = {title: [in_short(end) for end in one["linear"]] for title, one in ended.items()}
    golden.check_json("derived/cases-linear.json", short)


def ends(case: Case, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What becomes of each stack of a case, and of what is in none."""
    headers = read_headers(case.write(folder / "received"))
    aside = sorted({f"{item.reason}: {item.sentence}" for item in set_aside(headers)})
    ended: dict[str, list[dict[str, Any]]] = {
        "halfway": [{"set_aside": aside}] if aside else [],
        "linear": [],
    }
    for number, stack in enumerate(stacks_of(headers)):
        files = [header.path for header in sorted(stack.headers, key=lambda header: header.order)]
        for model, ends_of in ended.items():
            asked = request(files, folder / f"{model}-{number}", edit=case.ask)
            if model == "linear":
                asked = replace(asked, model=ModelSpec(model))
            ends_of.append({"stack": stack.key} | facts(unchecked(asked), asked.folder))
    return ended


def in_short(end: dict[str, Any]) -> str:
    """A stack in one line: how it ended and the bytes, without records and sentences."""
    names = ["state", "reason", "series_uid", "headers_sha256", "pixels_sha256"]
    if end.get("record", {}).get("shear_degrees"):
        # Sampling off the grid is OpenCV's, which rounds as the processor's instructions do.
        names[-1] = "mean"
    return " ".join(end[name] for name in names if name in end)


def facts(outcome: Outcome, folder: Path) -> dict[str, object]:
    match outcome:
        case Derived():
            for file in outcome.files:
                content = (folder / file.name).read_bytes()
                assert blake3(content).hexdigest() == file.digest
            files = images(outcome, folder)
            ended: dict[str, object] = {
                "state": "derived",
                "series_uid": outcome.series_uid,
                "version": outcome.version,
                "generated": "".join(
                    "01"[file.generated] for file in outcome.files if file.kind == "image"
                ),
            } | digests(files)
        case Verdict():
            state = "held" if outcome.held else "refused"
            ended = {"state": state, "reason": outcome.reason, "sentence": outcome.sentence}
        case Failed():
            return {"state": "failed", "reason": outcome.reason, "sentence": outcome.sentence}
        case _:
            return {"state": type(outcome).__name__}
    return ended | {"record": golden.rewritten(dict(outcome.record), str, VARIES)}


def digests(files: list[Path]) -> dict[str, object]:
    """Of all files in their order: of what stands before the pixels, and of the pixels."""
    headers, pixels, means = hashlib.sha256(), hashlib.sha256(), []
    for path in files:
        content = path.read_bytes()
        made = dcmread(path)
        values = made.PixelData
        means.append(float(made.pixel_array.mean()))
        before, _, after = content.rpartition(values)
        assert before, path
        headers.update(before + after)
        pixels.update(values)
    return {
        "headers_sha256": headers.hexdigest()[:DIGITS],
        "pixels_sha256": pixels.hexdigest()[:DIGITS],
        "mean": f"mean {sum(means) / len(means):.0f}",
    }


@pytest.mark.parametrize("model", ["linear", "midslice"])
def test_the_header_of_a_received_and_of_a_generated_slice(model: str, tmp_path: Path) -> None:
    files = phantoms.write(tmp_path / "received", phantoms.Series(slices=4))
    asked = replace(request(files, tmp_path / "derived"), model=ModelSpec(model))
    outcome = unchecked(asked)
    assert isinstance(outcome, Derived), outcome
    lines = []
    for is_generated in (False, True):
        name = next(file.name for file in outcome.files if file.generated is is_generated)
        made = dcmread(asked.folder / name)
        lines += [f"# {'generated' if is_generated else 'received'}", *shown(made.file_meta)]
        lines += shown(made)
    golden.check(f"derived/header-{model}.txt", "\n".join(lines) + "\n")


def shown(dataset: Dataset, depth: int = 0) -> Iterator[str]:
    """A line for each element; of long values the digest."""
    for element in dataset:
        begin = f"{'  ' * depth}{element.tag} {element.VR} {element.keyword}"
        if element.VR == "SQ":
            yield begin
            for item in element.value:
                yield from shown(item, depth + 1)
                yield f"{'  ' * depth}--"
        elif element.keyword in OF_PIXELS:
            yield f"{begin} ..."
        else:
            value = JUDGEMENT.sub("<judgement>", str(element.value))
            digest = hashlib.sha256(value.encode()).hexdigest()[:DIGITS]
            yield f"{begin} {value if len(value) <= LONGEST else digest}"

"""One table of reasons: complete, equal to what inference decides, with advice where it is due."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from inference.errors import HELD, Reason
from node.config import SLICE_OPTIONS
from node.rules import reasons
from node.rules.reasons import FUTILE, ONE_BY_ONE, REASONS, TABLE, WITHOUT_SLICES
from node.work.executor import End
from storage.records import DeliveryState, JobState

CODE = re.compile(r"[A-Z]+(_[A-Z]+)*")
PLACES = {
    "hold": 1,
    "_hold": 1,
    "refuse": 1,
    "_retry": 2,
    "Verdict": 1,
    "JobVerdict": 1,
    "stop": 4,
    "cancel_undelivered": 2,
}  # call -> its argument
HOW = {End.CANCELLED, End.STOPPED}  # ends of a worker that are no reason of a job


def codes_of(module: ModuleType, tree: ast.Module) -> Iterator[str]:
    """The reason codes that a module writes into rows, as literals or by their constants."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            place = PLACES.get(name, len(node.args))
            values = node.args[place : place + 1]
            values += [word.value for word in node.keywords if word.arg == "reason"]
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            values = [v for k, v in pairs if isinstance(k, ast.Constant) and k.value == "reason"]
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "reason":
            chosen = node.value
            values = [chosen.body, chosen.orelse] if isinstance(chosen, ast.IfExp) else [chosen]
        else:
            continue
        for value in values:
            text = _text(module, value)
            if isinstance(text, str) and CODE.fullmatch(text):
                yield str(text)


def _text(module: ModuleType, value: ast.expr) -> object:
    if isinstance(value, ast.Constant):
        return value.value
    if isinstance(value, ast.Name):
        return getattr(module, value.id, None)
    if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
        return getattr(getattr(module, value.value.id, None), value.attr, None)
    return None


def written_codes() -> set[str]:
    """Every code that the source of the node and of storage can write."""
    found = set(map(str, Reason)) | {str(end) for end in End if end not in HOW}
    for path in [*Path("storage").rglob("*.py"), *Path("node/work").rglob("*.py")]:
        text = path.read_text()
        if "migrations" not in path.parts and "reason" in text.lower():
            name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
            found |= set(codes_of(importlib.import_module(name), ast.parse(text)))
    return found


def test_every_code_that_the_source_writes_has_its_entry_and_no_other_has() -> None:
    codes = written_codes()
    assert {"ABANDONED", "GAVE_UP", "TOO_MANY_RERUNS", "SUPERSEDED", "RETRY"} <= codes
    assert codes == REASONS.keys()
    assert len({(type(entry.state), entry.code) for entry in TABLE}) == len(TABLE)


def test_a_verdict_leads_to_the_state_that_inference_decides() -> None:
    for reason in Reason:
        expected = JobState.HELD if reason in HELD else JobState.REFUSED
        assert REASONS[reason].state is expected, reason


def test_there_is_advice_for_all_that_waits_for_a_person_and_for_nothing_else() -> None:
    for entry in TABLE:
        needs_a_person = entry.state in (JobState.HELD, DeliveryState.HELD)
        assert bool(entry.advice) is needs_a_person, entry.code
        assert entry.meaning.endswith("."), entry.code


def test_only_what_a_person_decides_is_futile_or_requeued_by_itself() -> None:
    assert {
        code for code in FUTILE | ONE_BY_ONE if REASONS[code].state is not JobState.HELD
    } == set()
    assert not FUTILE & ONE_BY_ONE


def test_advice_follows_the_files_then_the_route_then_the_code_then_the_state() -> None:
    code = "MISSING_SLICES"
    assert reasons.advice("held", code, is_gone=True, is_changed=True) == reasons.GONE_ADVICE
    assert reasons.advice("held", code, is_changed=True) == reasons.CHANGED_ADVICE
    assert reasons.advice("held", code) == REASONS[code].advice
    assert reasons.advice("held", code, makes_slices=False) == reasons.WITHOUT_SLICES[code]
    assert reasons.advice("held", "PIXEL_DATA_ERROR", makes_slices=False).startswith("Send")
    assert reasons.advice("failed", "ValueError") == reasons.FAILED_ADVICE
    assert reasons.advice("held", "SOMETHING_NEW") == reasons.HELD_ADVICE
    damaged = {reasons.advice("held", "DAMAGED_FILES", is_delivery=it) for it in (False, True)}
    assert len(damaged) == 2  # received files are sent again, those of a result come from a backup
    assert reasons.advice("held", "RETRY", is_delivery=True) == reasons.DELIVERY_ADVICE


def test_advice_for_a_model_without_slices_names_no_option_of_those_that_make_them() -> None:
    assert WITHOUT_SLICES.keys() <= REASONS.keys()
    for entry in TABLE:
        said = reasons.advice(entry.state, entry.code, makes_slices=False)
        if entry.code != "UNDERSAMPLED":  # of a model that makes slices alone
            assert not [option for option in SLICE_OPTIONS if option in said], entry.code


def test_a_job_that_keeps_a_density_makes_slices() -> None:
    assert reasons.asks_for_slices({"factor": 4, "target_spacing_mm": None})
    assert reasons.asks_for_slices({"factor": None, "target_spacing_mm": 1.25})
    assert not reasons.asks_for_slices({"factor": None, "target_spacing_mm": None})


def test_a_requeue_is_futile_until_the_route_has_changed() -> None:
    assert reasons.is_futile("LOW_CONFIDENCE", is_changed=False)
    assert not reasons.is_futile("LOW_CONFIDENCE", is_changed=True)
    assert not reasons.is_futile("TIME_LIMIT", is_changed=False)


def test_a_heading_says_in_words_what_many_wait_for() -> None:
    held = {entry.code for entry in TABLE if entry.state in (JobState.HELD, DeliveryState.HELD)}
    assert held == reasons.HEADINGS.keys()
    assert reasons.heading("held", "MISSING_SLICES", 1) == "1 series misses slices"
    assert reasons.heading("held", "MISSING_SLICES", 12) == "12 series miss slices"
    assert reasons.heading("failed", "ValueError", 2) == "2 series failed with ValueError"
    assert reasons.heading("held", "NEW", 1) == "1 series waits for a person: NEW"
    assert reasons.heading("held", "NEW", 2) == "2 series wait for a person: NEW"
    several = "3 deliveries were refused by the destination"
    assert reasons.heading("held", "REFUSED_BY_PEER", 3, is_delivery=True) == several

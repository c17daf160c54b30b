"""Routing: which routes take a stack, why others do not, and what a job keeps of its route."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from inference.descriptions import READINGS
from node.config import SENDER, Condition, Destination, Route

GEOMETRIC = ("gap_mm", "tilt_degrees")  # what only a stack with positions has
# The attributes that routes are written with most; none of them is a patient's.
USUAL = ("Modality", "ImageType", "BodyPartExamined", "SliceThickness", "ConvolutionKernel")
# What a route may ask for that says nothing of a patient; "" stands for AE titles.
# Of a description only the word that decided is repeated.
OPEN = frozenset((*USUAL, *GEOMETRIC, *READINGS, "instances", "Manufacturer", "StationName", ""))

MOST_SHOWN = 64  # characters of a received value in a sentence

Values: TypeAlias = Sequence[object]  # of one attribute; empty = absent or without a value


class HeaderView(Protocol):
    """Of an instance, as the reader of files gives it."""

    def values(self, keyword: str, /) -> Values: ...


class StackView(Protocol):
    """Instances that form one volume."""

    @property
    def headers(self) -> Sequence[HeaderView]: ...

    def __len__(self) -> int: ...


class StackMeasures(Protocol):
    """The measures of a stack."""

    @property
    def gap_mm(self) -> float: ...

    @property
    def shear_degrees(self) -> float: ...


@dataclass(frozen=True)
class Objection:
    """One condition of a route that does not hold."""

    sentence: str
    key: str = ""  # of the route's conditions; empty: its AE titles


@dataclass(frozen=True)
class Explanation:
    """The answer of a route to a stack. It may repeat attributes: for pages, not for logs."""

    route: str
    objections: tuple[Objection, ...]
    note: str = "All its conditions hold."  # where it takes the stack

    @property
    def matches(self) -> bool:
        """True where the route takes the stack."""
        return not self.objections

    @property
    def sentences(self) -> tuple[str, ...]:
        """Everything that speaks against the route; else that nothing does."""
        return tuple(objection.sentence for objection in self.objections) or (self.note,)

    @property
    def sentence(self) -> str:
        """The same as one text."""
        return " ".join(self.sentences)


def explain(routes: Iterable[Route], candidate: "Candidate") -> tuple[Explanation, ...]:
    """For each route whether it takes the stack, and everything that speaks against it."""
    return tuple(Explanation(route.name, tuple(candidate.objections(route))) for route in routes)


def explain_stack(
    routes: Sequence[Route],
    stack: StackView,
    layout: StackMeasures | None,
    *,
    called_ae: str,
    calling_ae: str,
    node_ae: str,
) -> tuple[Explanation, ...]:
    """For each route whether it takes a stack as it was read and measured.

    What forms no stack (`layout` None) has neither gap nor tilt. A route that asks for them must
    not pass over it in silence: it takes it where all else that it asks for holds.
    """
    candidate = Candidate(
        called_ae=called_ae,
        calling_ae=calling_ae,
        node_ae=node_ae,
        attributes=stack.headers[0].values,
        instances=len(stack),
        gap_mm=layout.gap_mm if layout else None,
        tilt_degrees=layout.shear_degrees if layout else None,
    )
    if layout:
        return explain(routes, candidate)
    explanations = explain(map(without_measures, routes), candidate)
    return tuple(map(_left_out, explanations, routes))


def _left_out(explanation: Explanation, route: Route) -> Explanation:
    """Say which conditions were not asked of what has no gap."""
    names = [name for name in GEOMETRIC if name in route.match]
    if not names:
        return explanation
    unchecked = f"the instances form no stack, so {' and '.join(names)} cannot be checked."
    return replace(explanation, note=f"All its other conditions hold; {unchecked}")


def kept_objections(evidence: Mapping[str, object], *, masked: bool) -> dict[str, tuple[str, ...]]:
    """The objections to each route when an arrival was complete, in sentences.

    `masked`: without a value that may be a patient's.
    """
    rows = evidence.get("objections")
    by_route: dict[str, dict[str, None]] = {}
    for route, key, sentence in rows if isinstance(rows, list) else ():
        shown = without_value(key, sentence) if masked else sentence
        by_route.setdefault(route, {})[shown] = None
    return {route: tuple(sentences) for route, sentences in by_route.items()}


def without_value(key: str, sentence: str) -> str:
    """The objection to a route, without a value that may be a patient's."""
    if key in OPEN:
        return sentence
    return f"Its condition on {key} does not hold; the value in the series is hidden."


def asking_for(route: Route, keys: Collection[str]) -> Route:
    """The route as if it asked for these keys only."""
    match = {key: value for key, value in route.match.items() if key in keys}
    return route.model_copy(update={"match": match})


def without_measures(route: Route) -> Route:
    """The route as it is asked about a stack that has neither gap nor tilt."""
    return asking_for(route, route.match.keys() - set(GEOMETRIC))


def sender_of(destinations: Iterable[Destination], calling_ae: str) -> Destination | None:
    """The destination that "sender" means for what `calling_ae` brought."""
    for destination in destinations:
        if calling_ae in {destination.ae_title, *destination.sends_as}:
            return destination
    return None


def destination_of(name: str, calling_ae: str, destinations: Sequence[Destination]) -> str:
    """The destination that `name` means; "sender" is the one that the calling AE belongs to.

    An unknown sender keeps a name of its own: its delivery is held, and nothing is lost silently.
    """
    if name != SENDER:
        return name
    known = sender_of(destinations, calling_ae)
    return known.name if known is not None else sender_name(calling_ae)


def sender_name(calling_ae: str) -> str:
    """The name of a destination while no destination sends as this AE."""
    return f"{SENDER} {calling_ae}"


def sender_in(destination: str) -> str | None:
    """The calling AE title in such a name; None for the name of a destination."""
    kind, _, calling_ae = destination.partition(" ")
    return calling_ae if kind == SENDER and calling_ae else None


def owner_of(destinations: Iterable[Destination], name: str) -> str | None:
    """The destination that an unknown sender has become, by its name; None where it has not."""
    sender = sender_in(name)
    owner = sender_of(destinations, sender) if sender is not None else None
    return owner.name if owner is not None else None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A stack as routes are asked about it; `None` for a measure that it does not have."""

    called_ae: str
    calling_ae: str
    attributes: Callable[[str], Values]
    gap_mm: float | None
    instances: int
    tilt_degrees: float | None
    node_ae: str

    def objections(self, route: Route) -> Iterator[Objection]:
        """Everything that speaks against `route`; nothing where it takes the stack."""
        called = route.called_ae_title or self.node_ae
        if self.called_ae != called:
            sent = f"It was sent to {self.called_ae}" if self.called_ae else "No receiver is named"
            yield Objection(f"{sent}; the route takes only what is sent to {called}.")
        calling = route.calling_ae_title
        if calling and self.calling_ae != calling:
            sent = f"It was sent by {self.calling_ae}" if self.calling_ae else "No sender is named"
            yield Objection(f"{sent}; the route takes only what {calling} sends.")
        for key, condition in route.match.items():
            values, where = self._said(key)
            for sentence in _objections(key, values, condition, where):
                yield Objection(sentence, key)

    def _said(self, key: str) -> tuple[tuple[object, ...], str]:
        """The values of a key, and what says so where that is another attribute."""
        if key not in READINGS:
            return self._values(key), ""
        said = READINGS[key][0](self.attributes)
        return said.values, f" ({_shown(said.where)})" if said.where else ""

    def _values(self, key: str) -> tuple[object, ...]:
        measures = {
            "gap_mm": self.gap_mm,
            "instances": self.instances,
            "tilt_degrees": self.tilt_degrees,
        }
        if key in measures:
            measured = measures[key]
            return () if measured is None else (measured,)
        return tuple(value for value in self.attributes(key) if _text(value))


def _objections(
    key: str, values: tuple[object, ...], condition: Condition, where: str = ""
) -> Iterator[str]:
    if not values:
        yield f"{key} is absent."
        return
    text = _joined(values)
    is_text = f"{key} is {_shown(text)}{where}"
    if condition.values and not any(_equal(values, value) for value in condition.values):
        wanted = " or ".join(_text(value) for value in condition.values)
        yield f"{is_text}, but must be {wanted}."
    if condition.has is not None and not any(_same(value, condition.has) for value in values):
        yield f"{is_text}; none of its values is {_text(condition.has)}."
    if condition.regex is not None and not re.search(condition.regex, text):
        expression = f"the regular expression {condition.regex}"
        yield f"{is_text}, which does not match {expression}."
    out_of_range = _out_of_range(key, values, condition)
    if out_of_range:
        yield out_of_range


def _out_of_range(key: str, values: tuple[object, ...], condition: Condition) -> str | None:
    if condition.min is None and condition.max is None:
        return None
    for value in values:
        number = _number(value)
        if number is None:
            return f"{key} is {_shown(_text(value))}, which is not a number."
        if condition.min is not None and number < condition.min:
            return f"{key} is {_shown(_text(value))}, but must be at least {condition.min:g}."
        if condition.max is not None and number > condition.max:
            return f"{key} is {_shown(_text(value))}, but must be at most {condition.max:g}."
    return None


def _equal(values: tuple[object, ...], wanted: object) -> bool:
    """A value equals an attribute of one value, or all values of one as DICOM writes them."""
    return _same(values[0], wanted) if len(values) == 1 else _joined(values) == _text(wanted)


def _same(value: object, wanted: object) -> bool:
    """Numbers are compared as numbers where the rule or the attribute is one, else as text."""
    if isinstance(value, int | float) or isinstance(wanted, int | float):
        ours, theirs = _number(value), _number(wanted)
        if ours is not None and theirs is not None:
            return ours == theirs
    return _text(value) == _text(wanted)


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _text(value: object) -> str:
    # PS3.5 6.2: padding of text is not significant; `gap_mm` is shown as a person would say it.
    if isinstance(value, float) and type(value) is float:
        return f"{round(value, 3):g}"
    return str(value).strip(" \0")


def _shown(text: str) -> str:
    """A received value as a sentence quotes it."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:MOST_SHOWN])


def _joined(values: tuple[object, ...]) -> str:
    return "\\".join(_text(value) for value in values)


def has_changed(routes: Iterable[Route], name: str, model: str, kept: Mapping[str, object]) -> bool:
    """True where a route asks for something else than this snapshot; not where it is gone."""
    route = next((route for route in routes if route.name == name), None)
    return route is not None and (route.model, {**kept, **route.options}) != (model, dict(kept))

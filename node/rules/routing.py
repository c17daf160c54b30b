"""Routing: which routes take a stack, why others do not, and what a job keeps of its route."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from node.config import SENDER, Condition, Destination, Route

GEOMETRIC = ("gap_mm", "tilt_degrees")  # what only a stack with positions has

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
class Explanation:
    """The answer of a route to a stack. The sentence may repeat attributes: for pages, not logs."""

    route: str
    matches: bool
    sentence: str
    key: str = ""  # the condition that speaks against it; empty: its AE titles, or nothing


def explain(routes: Iterable[Route], candidate: "Candidate") -> tuple[Explanation, ...]:
    """For each route whether it takes the stack, and the first thing that speaks against it."""
    return tuple(_explained(route, candidate.objection(route)) for route in routes)


def _explained(route: Route, objection: "Objection | None") -> Explanation:
    if objection is None:
        return Explanation(route.name, True, "Everything that it asks for holds.")
    return Explanation(route.name, False, objection.sentence, objection.key)


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
    left = [name for name in GEOMETRIC if name in route.match]
    if not (left and explanation.matches):
        return explanation
    sentence = f"All else that it asks for holds; without a stack there is no {left[0]}."
    return replace(explanation, sentence=sentence)


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


@dataclass(frozen=True)
class Objection:
    """The first thing that speaks against a route."""

    sentence: str
    key: str = ""  # of the route's conditions


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

    def objection(self, route: Route) -> Objection | None:
        """The first thing that speaks against `route`; None where it takes the stack."""
        called = route.called_ae_title or self.node_ae
        if self.called_ae != called:
            return Objection(f"It was sent to {self.called_ae}, the route is for {called}.")
        if route.calling_ae_title and self.calling_ae != route.calling_ae_title:
            wanted = route.calling_ae_title
            return Objection(f"It was sent by {self.calling_ae}, the route is for {wanted}.")
        for key, condition in route.match.items():
            sentence = _objection(key, self._values(key), condition)
            if sentence:
                return Objection(sentence, key)
        return None

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


def _objection(key: str, values: tuple[object, ...], condition: Condition) -> str | None:
    if not values:
        return f"{key} is absent."
    text = _joined(values)
    if condition.values and not any(_equal(values, value) for value in condition.values):
        wanted = " or ".join(_text(value) for value in condition.values)
        return f"{key} is {text}, not {wanted}."
    if condition.has is not None and not any(_same(value, condition.has) for value in values):
        return f"{key} is {text}, which has no value {_text(condition.has)}."
    if condition.regex is not None and not re.search(condition.regex, text):
        return f"{key} is {text}, which {condition.regex} does not match."
    return _out_of_range(key, values, condition)


def _out_of_range(key: str, values: tuple[object, ...], condition: Condition) -> str | None:
    if condition.min is None and condition.max is None:
        return None
    for value in values:
        number = _number(value)
        if number is None:
            return f"{key} is {_text(value)}, which is no number."
        if condition.min is not None and number < condition.min:
            return f"{key} is {_text(value)}, not at least {condition.min:g}."
        if condition.max is not None and number > condition.max:
            return f"{key} is {_text(value)}, not at most {condition.max:g}."
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


def _joined(values: tuple[object, ...]) -> str:
    return "\\".join(_text(value) for value in values)


def has_changed(routes: Iterable[Route], name: str, model: str, kept: Mapping[str, object]) -> bool:
    """True where a route asks for something else than this snapshot; not where it is gone."""
    route = next((route for route in routes if route.name == name), None)
    return route is not None and (route.model, {**kept, **route.options}) != (model, dict(kept))

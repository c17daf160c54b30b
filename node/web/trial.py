"""What the rules say to files; `tried` runs in a process of its own.

Reading a data set loads every pixel decoder, and a file that somebody drops may be made to hurt:
neither is for the process that serves the pages.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from node.config import Route
from node.rules import routing
from node.rules.routing import Explanation

if TYPE_CHECKING:
    from inference.stacks import Stack

SHOWN = ("Modality", "ImageType", "BodyPartExamined", "SliceThickness", "ConvolutionKernel")
# What a route may ask for that says nothing of a patient.
OPEN = frozenset((*SHOWN, *routing.GEOMETRIC, "instances", "Manufacturer", "StationName", ""))

State = Literal["would be processed", "refused", "held", "no route"]


@dataclass(frozen=True)
class Question:
    """Which files, brought by whom, under which routes."""

    paths: tuple[Path, ...]  # of one instance the newest version only
    called_ae: str
    calling_ae: str
    node_ae: str
    routes: tuple[Route, ...]


@dataclass(frozen=True)
class TriedStack:
    """What each route says to a stack, and what the check of its geometry says."""

    stack: str
    instances: int
    gap_mm: float | None  # None: the instances form no stack with positions, as a single file
    tilt_degrees: float | None
    missing: int  # slices
    notes: tuple[str, ...]
    attributes: tuple[tuple[str, str], ...]  # those that routes are written with most
    routes: tuple[Explanation, ...]
    state: State  # by the first route that matches
    reason: str
    sentence: str


@dataclass(frozen=True)
class Tried:
    """The stacks that the files form, and how many belong to none, by reason."""

    stacks: tuple[TriedStack, ...]
    set_aside: tuple[tuple[int, str], ...]


def masked(found: Tried) -> Tried:
    """The same for somebody who wants patients hidden: no sentence repeats what may be theirs."""
    return replace(found, stacks=tuple(map(_masked, found.stacks)))


def _masked(stack: TriedStack) -> TriedStack:
    said = "does not hold; what the series has is hidden."
    routes = (
        each if each.key in OPEN else replace(each, sentence=f"What it asks of {each.key} {said}")
        for each in stack.routes
    )
    return replace(stack, routes=tuple(routes))


def tried(question: Question) -> Tried:
    """Group, measure and match the files, from their headers alone."""
    from inference import stacks

    headers = stacks.read_headers(question.paths)
    aside = Counter(f"{each.reason}: {each.sentence}" for each in stacks.set_aside(headers))
    return Tried(
        stacks=tuple(_stack(stack, question) for stack in stacks.stacks_of(headers)),
        set_aside=tuple((count, reason) for reason, count in aside.most_common()),
    )


def _stack(stack: "Stack", question: Question) -> TriedStack:
    from inference import geometry

    layout = geometry.measure(stack)
    explained = routing.explain_stack(
        question.routes,
        stack,
        layout,
        called_ae=question.called_ae,
        calling_ae=question.calling_ae,
        node_ae=question.node_ae,
    )
    names = [each.route for each in explained if each.matches]
    state, reason, sentence = _verdict(stack, names, question.routes)
    header = stack.headers[0]
    return TriedStack(
        stack=stack.key,
        instances=len(stack),
        gap_mm=layout.gap_mm if layout else None,
        tilt_degrees=layout.shear_degrees if layout else None,
        missing=sum(layout.missing.values()) if layout else 0,
        notes=layout.notes if layout else (),
        attributes=tuple((name, "\\".join(header.values(name))) for name in SHOWN),
        routes=explained,
        state=state,
        reason=reason,
        sentence=sentence,
    )


def _verdict(
    stack: "Stack", matching: Sequence[str], routes: Sequence[Route]
) -> tuple[State, str, str]:
    from inference import geometry
    from inference.request import Output

    route = next((each for each in routes if each.name in matching), None)
    if route is None:
        return "no route", "", "No route takes it: it would be kept, and nothing made of it."
    wanted = Output(
        accept_derived=route.accept_derived,
        across_missing=route.across_missing,
    )
    found = geometry.verdict(stack, wanted)
    if found is None:
        return "would be processed", "", "Nothing in its headers speaks against it."
    return ("held" if found.is_held else "refused"), str(found.reason), found.sentence

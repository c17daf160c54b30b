"""CT stacks for models that take a whole one: which of them are in scope, and their values in HU.

A model that judges what it sees is never shown what was generated: results of this node, synthetic
images and projections are refused, and so is a stack with one of them among its slices.
"""

import re
from collections.abc import Callable, Sequence
from datetime import date

from inference.dataset import Header, Stack, quoted
from inference.errors import Reason, Unprocessable
from inference.geometry import Layout, arrange, in_gaps, in_scope, missing_sentence
from inference.model import Model, SeriesFacts
from inference.pixels import PixelReader
from inference.request import Output
from inference.volume import Geometry, Volume

# Attributes by which a model may state its scope; those of the order lie in a sequence.
FACTS = (
    *("BodyPartExamined", "StudyDescription", "SeriesDescription", "ProtocolName"),
    *("RequestedProcedureDescription", "PerformedProcedureStepDescription", "ConvolutionKernel"),
    *("ContrastBolusAgent", "ContrastBolusRoute"),
)
OF_ORDER = ("RequestedProcedureDescription", "ScheduledProcedureStepDescription")
AGE = re.compile(r"(\d{1,3})([DWMY])")  # PS3.5 6.2, AS
A_YEAR = {"D": 365.25, "W": 365.25 / 7.0, "M": 12.0, "Y": 1.0}


def examine(stack: Stack, output: Output) -> Layout:
    """The layout of a whole stack of CT slices; raises Unprocessable for any other."""
    layout = arrange(in_scope(stack, output))
    if in_gaps(layout, stack.beside):
        sentence = (
            "Between the slices of this stack lie others of the same series. Send what belongs "
            "together in one piece, or each acquisition as a series of its own."
        )
        raise Unprocessable(Reason.MIXED_ACQUISITIONS, sentence)
    if layout.missing:
        raise Unprocessable(Reason.MISSING_SLICES, missing_sentence(layout, "."))
    return layout


def check_stated(model: Model, layout: Layout, output: Output) -> None:
    """Raise Unprocessable for what the model itself puts out of its scope by the headers."""
    check: Callable[[SeriesFacts, Geometry], None] | None = getattr(model, "check_scope", None)
    if check is not None:
        facts = facts_of(layout.headers, accept_children=output.accept_children)
        check(facts, layout.geometry)


def stated_doubts(model: Model, layout: Layout, output: Output) -> list[str]:
    """What the headers say that a person should know before the results of the model are used."""
    doubts: Callable[[SeriesFacts], Sequence[str]] | None = getattr(model, "doubts_about", None)
    if doubts is None:
        return []
    return [*doubts(facts_of(layout.headers, accept_children=output.accept_children))]


def facts_of(headers: Sequence[Header], *, accept_children: bool = False) -> SeriesFacts:
    """What the slices of a stack say; where they differ, all of it."""
    values = {keyword: _different(headers, keyword) for keyword in FACTS}
    orders = [item for of in headers for item in of.items("RequestAttributesSequence")]
    for keyword in OF_ORDER:
        values[keyword] = (*values.get(keyword, ()), *_different(orders, keyword))
    agents = [item for of in headers for item in of.items("ContrastBolusAgentSequence")]
    values["ContrastBolusAgent"] += _different(agents, "CodeMeaning")
    return SeriesFacts(
        {keyword: words for keyword, words in values.items() if words},
        next((age for age in map(age_years, headers) if age is not None), None),
        accept_children,
    )


def _different(headers: Sequence[Header], keyword: str) -> tuple[str, ...]:
    texts = (header.decoded(keyword) or header.text(keyword) for header in headers)
    return tuple(dict.fromkeys(quoted(text) for text in texts if text.strip()))


def age_years(header: Header) -> float | None:
    """Patient's Age, else from the dates of birth and study; None where neither is there."""
    age = AGE.fullmatch(header.text("PatientAge").upper())
    if age is not None:
        return int(age[1]) / A_YEAR[age[2]]
    born, seen = (_date(header.text(name)) for name in ("PatientBirthDate", "StudyDate"))
    if born is None or seen is None or seen < born:
        return None
    return (seen - born).days / A_YEAR["D"]


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def open_volume(layout: Layout, pixels: PixelReader) -> Volume:
    """A stack in HU whose slices are decoded when they are asked for; padding is air."""
    return Volume(layout.geometry, lambda index: pixels.hounsfield(layout.headers[index]))

"""Key object selection: the slices that a person should look at first."""

from collections.abc import Sequence

from pydicom.sr.codedict import codes

from inference.dataset import Header
from inference.header import Elements
from inference.results.making import RESEARCH_WORDS, Making, Reference, arguments, completed
from inference.results.reports import NOT_IN_DOCUMENTS, observer, requests


def key_objects(
    headers: Sequence[Header],
    text: str,
    making: Making,
    *,
    what: str,
    number: int,
    place: str = "key objects",
    first: Header | None = None,
) -> Elements:
    """The whole data set; `headers` are the selected slices, the most important one first.

    All results have patient and study of the `first` slice of the stack, however others spell them.
    `text` (ASCII) says why these, after the words of research.
    """
    from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument  # takes seconds

    first = first or headers[0]
    chosen = [Reference.of(header).as_dataset(first) for header in headers]
    content = KeyObjectSelection(
        document_title=codes.DCM.OfInterest,
        referenced_objects=chosen,
        observer_device_context=observer(making),
        description=f"{RESEARCH_WORDS}. {text}",
    )
    made = KeyObjectSelectionDocument(chosen, content, **arguments(making, place))
    return completed(made, first, making, what, number, NOT_IN_DOCUMENTS) | requests(first)

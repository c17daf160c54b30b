"""Durations, sizes and counts as people read them: on pages, at the command line, in notices."""

from collections.abc import Mapping

from rich import filesize

from storage.records import Commitment, CommitmentState, Evidence

MINUTE, HOUR, DAY = 60, 3600, 86400
# The row of the delivery says it, or there is nothing to say.
WITHOUT_WORDS = (CommitmentState.CONFIRMED, CommitmentState.FAILED, CommitmentState.CANCELLED)
CONFIDENCE = ("sure", "fair", "unsure", "large_anatomy_only")  # of a slice, in their order


def duration(seconds: float | None) -> str:
    """Write a duration no more exactly than needed."""
    if seconds is None:
        return ""
    if 0 < seconds < 0.05:
        return "under 0.1 s"
    if 0 <= seconds < 10:
        return f"{seconds:.1f} s"
    whole = max(0, round(seconds))
    if 2 * MINUTE <= whole < 10 * MINUTE and whole % MINUTE:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    return whole_duration(whole)


def whole_duration(seconds: float) -> str:
    """Write a duration in the largest unit of which there are two, as page.js counts on."""
    whole = max(0, round(seconds))
    if whole < 2 * MINUTE:
        return f"{whole} s"
    if whole < 2 * HOUR:
        return f"{whole // MINUTE} min"
    if whole < 2 * DAY:
        return f"{whole // HOUR} h"
    return f"{whole // DAY} days"


def size(count: float) -> str:
    """Write a number of bytes in decimal units, as disks are sold."""
    return filesize.decimal(int(count))


def count(number: int, noun: str, plural: str = "") -> str:
    """Write a number and its noun, with a narrow space between thousands."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}".replace(",", "\u202f")


def confidence(counts: Mapping[str, int]) -> str:
    """Write how many slices are sure, fair and so on, as "12 sure, 3 fair"."""
    known = [(word, counts[word]) for word in CONFIDENCE if counts.get(word)]
    return ", ".join(f"{number} {word_of(word)}" for word, number in known)


def word_of(confidence: str) -> str:
    """Write the word of a slice's confidence as people read it."""
    return confidence.replace("_", " ")


def amount(number: float, noun: str) -> str:
    """Write a number that need not be whole, and its noun."""
    return f"{number:g} {noun if number == 1 else noun + 's'}"


def set_aside(record: Mapping[str, object]) -> list[str]:
    """Write what a job's record names as set aside: how many, which images, and why."""
    entries = record.get("set_aside")
    return [
        f"{count(entry['instances'], 'instance')} (image {entry['numbers']}): {entry['why']}"
        for entry in (entries if isinstance(entries, list) else ())
    ]


def mask(facts: Mapping[str, object]) -> str:
    """Write what a job's record says of a mask: of what, in how many slices, and its volume."""
    slices = int(str(facts["slices"]))
    return f"{facts['label']} mask in {count(slices, 'slice')}, volume {facts['volume_cm3']} cm3"


# By the kind of a result, as a reader of a PACS knows it.
OBJECTS = {
    "image": "Images",
    "presentation state": "Presentation state (GSPS)",
    "parametric map": "Parametric map",
    "segmentation": "Segmentation (SEG)",
    "report": "Structured report (SR)",
    "key objects": "Key object selection (KOS)",
    "capture": "Secondary capture (SC)",
}


def scores(facts: Mapping[str, object]) -> str:
    """Write what a job's record says of scores: where that of the series lies, and how many do."""
    series, threshold = float(str(facts["series"])), float(str(facts["series_threshold"]))
    slices = facts["slices"] if isinstance(facts["slices"], list) else []
    high = sum(score >= float(str(facts["slice_threshold"])) for score in slices)
    side = "above" if series >= threshold else "below"
    return (
        f"series {series:.2f}, {side} the threshold of {threshold:.2f}; "
        f"{high} of {count(len(slices), 'slice')} above theirs"
    )


def findings(record: Mapping[str, object]) -> str:
    """Write how many findings a job's record holds, and from which score on."""
    rows = record["findings"] if isinstance(record["findings"], list) else []
    number = count(len(rows), "finding") if rows else "no finding"
    threshold = record.get("threshold")
    return number if threshold is None else f"{number} at the threshold of {threshold:.2f}"


def result(record: Mapping[str, object]) -> str:
    """Write what a model made that makes no slices; "" for one that does."""
    if isinstance(facts := record.get("mask"), Mapping):
        return mask(facts)
    if isinstance(facts := record.get("scores"), Mapping):
        return scores(facts)
    return findings(record) if "findings" in record else ""


def proof(commitment: Commitment | None) -> str:
    """Say how far the storage commitment of a delivery is, without a full stop: a time may follow.

    Nothing where it needs no word.
    """
    if commitment is None or commitment.state in WITHOUT_WORDS:
        return ""
    said = commitment.sentence
    match commitment.state:
        case CommitmentState.UNPROVED:
            said = f"Not confirmed. {said}"
        case CommitmentState.WAITING:
            said = f"{said} A report on storage commitment is awaited"
        case CommitmentState.QUEUED if commitment.evidence is Evidence.QUERY:
            said = f"{said} It is looked for by C-FIND"
        case CommitmentState.QUEUED:
            said = f"{said} Storage commitment is asked for"
    return said.strip().rstrip(".")

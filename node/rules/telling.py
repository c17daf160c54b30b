"""What a notice says, event by event: job numbers, names of AEs and sentences, never a patient."""

from collections.abc import Mapping, Sequence

# event -> (subject, text). A fact that is missing is empty.
TEMPLATES = {
    "job_held": ("A job is held", "Job {job} is held ({reason}). {sentence}"),
    "job_failed": ("A job failed", "Job {job} failed ({reason}). {sentence}"),
    "delivery_held": (
        "A delivery is held",
        "The delivery of job {job} to {destination} is held ({reason}). {sentence}",
    ),
    "result_superseded": (
        "A result was replaced",
        "A result of job {job} was replaced. {sentence}",
    ),
    "destination_down": (
        "A destination does not answer",
        "{destination} does not answer. {sentence} What is to be sent there waits.",
    ),
    "destination_up": ("A destination answers again", "{destination} answers again."),
    "sender_silent": (
        "A sender is silent",
        "Nothing came from {sender} since {since}, though it is expected to send. Is it running, "
        "and does it still send to this node?",
    ),
    "selftest_failed": ("The self-test failed", "Self-test {selftest} failed. {sentence}"),
    "disk_low": ("The disk is filling up", "{sentence}"),
    "attention": ("Something needs attention", "{sentence}"),
    "test": ("A test", "This is a test notice, asked for by {who}. Whoever reads it is reached."),
}


def subject(event: str, node: str, count: int = 1) -> str:
    """The subject of a mail, the title of a message; `count` of them in one."""
    title = TEMPLATES[event][0]
    return f"{node}: {title}" + (f" ({count} times)" if count > 1 else "")


def text(event: str, facts: Mapping[str, object]) -> str:
    """What happened, in sentences."""
    said = TEMPLATES[event][1].format_map(_Facts(facts))
    return " ".join(said.replace("()", "").split()).replace(" .", ".")


def body(event: str, each: Sequence[Mapping[str, object]], link: str, most: int = 20) -> str:
    """The text of one message about one or several notices."""
    lines = [text(event, facts) for facts in each[:most]]
    if len(each) > most:
        lines.append(f"And {len(each) - most} more.")
    if link:
        lines.append(link)
    return "\n\n".join(lines)


class _Facts(dict[str, object]):
    """A template may name what this notice does not have."""

    def __init__(self, facts: Mapping[str, object]) -> None:
        super().__init__(facts)

    def __missing__(self, key: str) -> object:
        return ""

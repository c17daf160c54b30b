"""Words of headers about contrast, kernel and body part, as technologists and scanners write them.

Routes ask for them, and models that score look whether they are in scope. They are hints: a model
decides by the pixels, too.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

UNKNOWN = "unknown"
# Descriptions in the order in which they are asked: what is said of the series comes before what
# is said of the study, which often names more than one of them shows.
DESCRIPTIONS = ("SeriesDescription", "ProtocolName", "StudyDescription")
# A body part in a code of its own comes after the words that somebody wrote about the series.
NAMING_A_BODY_PART = (DESCRIPTIONS[0], "BodyPartExamined", *DESCRIPTIONS[1:])

Values = Callable[[str], Sequence[object]]  # of an attribute by its keyword


@dataclass(frozen=True)
class Said:
    """What a header says of one thing, and where: the attribute, and the word that decided."""

    values: tuple[str, ...]
    where: str = ""


def _words(*patterns: str) -> re.Pattern[str]:
    """Any of these, between what is no letter: `Head_5mm` has the word head."""
    return re.compile(rf"(?<![a-z])(?:{'|'.join(patterns)})(?![a-z])", re.IGNORECASE)


# Contrast agent. What denies it is looked for first: "without contrast" has the word contrast too.
AGENT = r"(?:contrast\w*|kontrast\w*|injection|km|gd|c\+)"
BOTH = _words(
    r"with\s*(?:and|&|\+|/)\s*without",
    r"mit\s*(?:und|u\.?|/)\s*ohne",
    r"avec\s*et\s*sans",
    *(r"w\s*(?:and|&|\+|/)?\s*w/?o", r"pre\s*(?:and|&|\+|/)\s*post"),
)
DENIED = _words(
    rf"(?:without|w/?o|non|no|not|ohne|sans|senza|sin|pre)[\s_-]*(?:(?:any|iv)[\s_-]*)*{AGENT}",
    *("noncontrast", "precontrast", "unenhanced", "ncct", "nativ[ea]?", "plain", r"c-(?![a-z0-9])"),
)
AFTER_OTHERS = r"(?![\s_-]*(?:op|trauma|crani|surg|fossa|fall|evd|shunt|drain|proc|mortem))"
GIVEN = _words(
    *(
        "cta",
        "ctp",
        r"(?:ct|mr)?angio(?:gra\w*)?",
        r"perfusion\w*",
        r"contrast\w*",
        r"kontrast\w*",
        r"c\+",
        "km",
    ),
    *(r"gd", r"gado\w*", rf"post{AFTER_OTHERS}", r"arterial\w*", r"arteriell\w*", "venous"),
    *(r"portal\w*", r"portoven\w*"),
)
NO_AGENT = re.compile(r"\W*(none|no|nil|not? given|n/?a|0|without|native?|plain)\W*", re.IGNORECASE)


def word_of_contrast(text: str) -> str:
    """The word by which a description says that a contrast agent was given; else nothing."""
    found = GIVEN.search(DENIED.sub(" ", _apart(text)))
    return found.group() if found else ""


def names_an_agent(value: str) -> bool:
    """Whether the value of an attribute of the contrast agent says that there was one."""
    return bool(value.strip(" \0")) and not NO_AGENT.fullmatch(value)


def contrast(values_of: Values) -> Said:
    """Whether a contrast agent was given: yes, no or unknown."""
    for keyword in ("ContrastBolusAgent", "ContrastBolusRoute"):
        if names_an_agent(_text(values_of(keyword))):
            return Said(("yes",), f"{keyword} has a value")
    for keyword in DESCRIPTIONS:
        text = _text(values_of(keyword))
        if both := BOTH.search(text):
            return Said((UNKNOWN,), f"{keyword} says {both.group()}")
        if given := word_of_contrast(text):
            return Said(("yes",), f"{keyword} says {given}")
        if denied := DENIED.search(text):
            return Said(("no",), f"{keyword} says {denied.group()}")
    return Said((UNKNOWN,))


def contrast_of_series(all_values: Iterable[Values]) -> Said:
    """The contrast of a series, whose slices need not all say it: yes where one of them does."""
    of_slices = [contrast(values_of) for values_of in all_values]
    return next((slice_ for slice_ in of_slices if slice_.values == ("yes",)), of_slices[0])


# Kernels by the names of their vendors: the first pattern that fits a name says what it is.
KERNELS = tuple(
    (re.compile(pattern, re.IGNORECASE), kind)
    for pattern, kind in (
        (r"FC[0126]\d", "soft"),  # Canon
        (r"FC[358]\d", "sharp"),
        (r"FC\d\d", UNKNOWN),
        (r"[A-Z]{1,2}[0-4]\d", "soft"),  # Siemens: B30f, H31s, Br40d, I26f; the number is sharpness
        (r"[A-Z]{1,2}[6-9]\d", "sharp"),
        (r"(SOFT|SMOOTH|STANDARD|STND)", "soft"),  # GE, and words that any of them uses
        (r"(BONE|EDGE|LUNG|SHARP|ULTRA)", "sharp"),
        (r"(A|B|UA|UB)$", "soft"),  # Philips
        (r"(D|E|L|Y[A-D])$", "sharp"),
    )
)


def kind_of_kernel(name: str) -> str:
    """Soft, sharp or unknown, by the name of a reconstruction kernel."""
    kinds = (kind for pattern, kind in KERNELS if pattern.match(name.strip()))
    return next(kinds, UNKNOWN)


def kernel(values_of: Values) -> Said:
    """The kind of the Convolution Kernel; where it has several values, the first is the kernel."""
    names = [str(value) for value in values_of("ConvolutionKernel")]
    if not names or not names[0].strip():
        return Said((UNKNOWN,))
    return Said((kind_of_kernel(names[0]),), f"ConvolutionKernel is {names[0].strip()}")


# Words of a body part in the languages of those who write them, and the codes that name two.
# A letter with an accent may be two bytes of another character set.
LETTER = r"\S{1,3}"
BODY_PARTS: Mapping[str, re.Pattern[str]] = {
    "head": _words(
        *("heads?", "headneck", "brain", "skull", r"crani\w*", r"cereb\w*", r"encephal\w*"),
        *("cct", r"neuro\w*", "kopf", rf"sch{LETTER}del", r"hirn\w*", rf"cr{LETTER}neo?"),
        *("cerveau", rf"t{LETTER}te", "cabeza", "cervello", r"encefal\w*", "testa", "hoofd"),
    ),
    "neck": _words("neck", "headneck", "hals", r"larynx", r"carotid\w*", "collo", "cuello"),
    "chest": _words(
        *("chest", r"chestabd\w*", r"th?orax", "torace", "lungs?", r"lungen?\w*", "hrct"),
        *(r"pulmo\w*", rf"t{LETTER}rax", r"poumons?", r"mediastin\w*"),
    ),
    "abdomen": _words(
        *(r"abd", r"abdom\w*", r"chestabd\w*", "liver", "leber", "kidneys?", "renal", r"nieren?"),
        *(r"pancrea\w*", r"(?:ober)?bauch"),
    ),
    "pelvis": _words("pelvi[sc]", r"abdomenpelvis", r"chestabdpelvis", "becken", r"prostat\w*"),
    "heart": _words("heart", r"cardi(?:ac|o\w*)", "coronary", "herz", "coeur"),
    "spine": _words(
        *("[ctl]?spine", "spinal", "lumbar", "[hbl]ws", r"\w*wirbels\w*", r"vertebr\w*", "rachis"),
    ),
    "limb": _words(
        *("extremit(?:y|ies)", "knee", "hip", "ankle", "foot", "leg", "arm", "hand", "wrist"),
        *("elbow", "shoulder", "humerus", "femur", "tibia", "knie", "fuss", "schulter"),
    ),
}


def words_of_body_parts(text: str) -> Mapping[str, str]:
    """The body parts that a description names, each with the word for it."""
    words = {part: pattern.search(_apart(text)) for part, pattern in BODY_PARTS.items()}
    return {part: found.group() for part, found in words.items() if found}


def body_part(values_of: Values) -> Said:
    """The body parts that the first attribute names that names any, in the order of the table."""
    for keyword in NAMING_A_BODY_PART:
        words = words_of_body_parts(_text(values_of(keyword)))
        if words:
            return Said(tuple(words), f"{keyword} says {', '.join(dict.fromkeys(words.values()))}")
    return Said((UNKNOWN,))


def _text(values: Sequence[object]) -> str:
    return _apart(" ".join(str(value) for value in values).strip(" \0"))


def _apart(text: str) -> str:
    """Words that only a capital tells apart, as in HeadRoutine, with a space between."""
    return re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])", " ", text)


# Keys of a route, each with its reading and with the values that it may have.
READINGS: Mapping[str, tuple[Callable[[Values], Said], tuple[str, ...]]] = {
    "contrast": (contrast, ("yes", "no", UNKNOWN)),
    "kernel": (kernel, ("soft", "sharp", UNKNOWN)),
    "body_part": (body_part, (*BODY_PARTS, UNKNOWN)),
}

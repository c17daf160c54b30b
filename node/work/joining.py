"""Series that several peers bring in parts: whose slices form one stack, and whose do not fit."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pydicom.datadict import dictionary_description

from inference import geometry, mr
from inference.dataset import newest, numbers_of, quoted
from inference.errors import Reason, Unprocessable
from inference.kinds import mr_kind_of
from inference.request import Output
from inference.stacks import Header, Stack, stacks_of
from storage.records import Brought, Instance

# Verdicts on a stack that its slices get by how they lie to one another.
ON_PLACES = frozenset(
    {
        Reason.MIXED_ACQUISITIONS,
        Reason.DUPLICATE_POSITIONS,
        Reason.BAD_ORIENTATION,
        Reason.NO_GEOMETRY,
    }
)
ANY_SLICES = Output(across_missing="leave")
WHAT_TO_DO = (
    "Find out which of them are right and let one peer send the whole series; "
    "then cancel this job. Or requeue it to process the images of {peers} by themselves."
)


@dataclass(frozen=True, eq=False)
class AskedStack:
    """A stack that a peer asks for, and the peers whose slices form it, the first to come first."""

    stack: Stack
    parts: tuple[Brought, ...]
    disagreement: str = ""  # why a person looks at it before it is processed


def stacks_asked_by(
    own: Brought,
    each: Sequence[Brought],
    stacks: Sequence[Stack],
    headers: Sequence[Header],
    others: Sequence[Header],
) -> list[AskedStack]:
    """The stacks that are asked for once the part of a peer is complete.

    Its slices are joined with those of other peers that they complete, or that complete them. A
    part of what others brought, without a gap in which one of their slices lies, is a stack of its
    own: somebody may have sent it on purpose. `stacks` and `headers` are what this peer brought by
    itself, `others` the slices that only others did.
    """
    alone = [AskedStack(stack, (own,)) for stack in stacks]
    if len(each) == 1:
        return alone
    members = [(stack, members_of(stack, each)) for stack in stacks_of([*headers, *others])]
    partners = {part.arrival.id for _, parts in members if _is_among(own, parts) for part in parts}
    if len(partners) < 2:  # it brought all of its stacks by itself, or a part or copy of others
        is_part = not partners and any(_has(stack, own.uids) for stack, _ in members)
        return alone if is_part else [_judged(asked, each, others) for asked in alone]
    asked = []
    for stack, parts in members:
        if _is_among(own, parts):
            asked.append(_judged(_joined(stack, own, parts), each, others))
        elif _has(stack, own.uids):
            asked.append(AskedStack(_only(stack, (own,)), (own,)))
        elif any(part.arrival.id in partners for part in parts):
            # Theirs alone, and asked for already; perhaps it has another name beside the new ones.
            asked.append(AskedStack(_only(stack, parts), parts))
    return asked


def members_of(stack: Stack, each: Sequence[Brought]) -> tuple[Brought, ...]:
    """The peers whose slices a stack is made of, without those that brought a copy or a part.

    A part has nothing that the others have not, and no slice of theirs lies in a gap of it. Of two
    that brought the same the first counts.
    """
    layout = geometry.measure(stack)
    place_of = {header.uid: place for place, header in enumerate(newest(stack.headers))}
    if layout is not None:
        place_of = {header.uid: place for place, header in enumerate(layout.headers)}
        place_of |= {copy.uid: place_of[first.uid] for first, copy in layout.copies}
    places = [{place_of[uid] for uid in part.uids if uid in place_of} for part in each]
    members = [index for index in range(len(each)) if places[index]]
    for index in reversed(members.copy()):
        theirs = set().union(*(places[other] for other in members if other != index))
        is_run = layout is None or max(places[index]) - min(places[index]) < len(places[index])
        if places[index] <= theirs and is_run:
            members.remove(index)
    return tuple(each[index] for index in members)


def _joined(stack: Stack, own: Brought, parts: tuple[Brought, ...]) -> AskedStack:
    """The slices of all these peers as one stack; those of one alone where they do not fit."""
    whole = _only(stack, parts)
    fault = _verdict(replace(whole, beside=()))
    if fault is None or fault.reason not in ON_PLACES:
        return AskedStack(whole, parts)
    for part in parts:
        by_itself = replace(_only(stack, (part,)), beside=(), fault="")
        verdict = _verdict(by_itself)
        if verdict is not None and verdict.reason in ON_PLACES:
            return AskedStack(whole, parts)  # it is not the other peers' slices
    mine = replace(_only(stack, (own,)), fault="")
    strangers = [part for part in parts if not _is_among(own, (part,))]
    theirs = [header for header in whole.headers if header.uid not in own.uids]
    return AskedStack(mine, (own,), _sentence((own,), strangers, theirs, fault.sentence))


def _verdict(stack: Stack) -> Unprocessable | None:
    """The reason why no model of its modality takes a stack; None where there is none."""
    is_mr = mr_kind_of(stack.headers[0]) is not None
    return mr.verdict(stack) if is_mr else geometry.verdict(stack, ANY_SLICES)


def _judged(asked: AskedStack, each: Sequence[Brought], others: Sequence[Header]) -> AskedStack:
    """The same, to be held where slices of other peers are of its kind and do not fit."""
    if asked.disagreement or asked.stack.fault:
        return asked
    members = {part.arrival.id for part in asked.parts}
    strangers = [part for part in each if part.arrival.id not in members]
    familiar = frozenset().union(*(part.uids for part in asked.parts))
    foreign = [header for header in newest(others) if header.uid not in familiar]
    unfit, keywords = geometry.unfit(asked.stack, foreign)
    strangers = [part for part in strangers if has_any(part, unfit)]
    if not strangers:
        return asked
    differing = ", ".join(map(dictionary_description, keywords)) or "places"
    return replace(
        asked, disagreement=_sentence(asked.parts, strangers, unfit, f"They differ in {differing}.")
    )


def _sentence(
    parts: Sequence[Brought], strangers: Sequence[Brought], unfit: Sequence[Header], why: str
) -> str:
    peers, others = names_of(parts), names_of(strangers)
    return (
        f"{others} sent other images of this series (image {numbers_of(unfit)}), which do not fit "
        f"those of {peers}. {why} {WHAT_TO_DO.format(peers=peers)}"
    )


def names_of(parts: Sequence[Brought]) -> str:
    """The calling AE titles of peers, as a sentence names them."""
    return listed(dict.fromkeys(part.arrival.calling_ae for part in parts))


def listed(titles: Iterable[str]) -> str:
    """AE titles in a sentence: A; A and B; A, B and C."""
    *most, last = map(quoted, titles)
    return f"{', '.join(most)} and {last}" if most else last


def _only(stack: Stack, parts: Sequence[Brought]) -> Stack:
    """The slices of a stack that these peers brought."""
    uids = frozenset().union(*(part.uids for part in parts))
    return replace(stack, headers=tuple(h for h in stack.headers if h.uid in uids))


def instances_of(parts: Sequence[Brought]) -> tuple[Instance, ...]:
    """All versions that these peers brought, the newest first; bytes that two brought come once."""
    latest: dict[int, Instance] = {}
    for instance in (instance for part in parts for instance in part.instances):
        known = latest.get(instance.id)
        if known is None or instance.received_at > known.received_at:
            latest[instance.id] = instance
    versions = latest.values()
    return tuple(sorted(versions, key=lambda it: (it.received_at, it.id), reverse=True))


def _has(stack: Stack, uids: frozenset[str]) -> bool:
    return any(header.uid in uids for header in stack.headers)


def has_any(part: Brought, headers: Sequence[Header]) -> bool:
    """True where a peer has brought one of these slices."""
    return any(header.uid in part.uids for header in headers)


def _is_among(own: Brought, parts: Sequence[Brought]) -> bool:
    return any(part.arrival.id == own.arrival.id for part in parts)

"""What is held for one destination, all of it at once: after a night in which it was down."""

from fastapi import APIRouter

from node.rules.view import Json
from node.web.auth import AsOperator
from node.web.parts import PartsOf
from node.web.rest.inputs import Name
from storage.errors import StorageError
from storage.queries import overview

router = APIRouter(tags=["operating"])

MOST_AT_ONCE = 500


@router.post("/destinations/{name}/requeue", summary="Try every held delivery to it again")
def requeue(name: Name, visitor: AsOperator, parts: PartsOf) -> Json:
    """How many wait again, and how many are held still: the rest of a long list, or refused."""
    waiting = overview.held_for(parts.database, name, MOST_AT_ONCE)
    if not waiting:
        parts.config().destination(name)  # one that is gone may have held some; an unknown one not
    done = 0
    for delivery_id in waiting:
        try:
            parts.store.ledger.requeue(delivery_id, who=visitor.name)
        except StorageError:  # somebody was quicker, or its files are gone: it stays in the list
            continue
        done += 1
    return {"name": name, "requeued": done, "held": overview.held(parts.database).get(name, 0)}

"""Commands with which a person changes what the queue does; each is an audit event."""

from typing import TYPE_CHECKING, Annotated

import typer

from node.commands import terminal
from node.commands.account import user
from node.commands.filters import destinations
from node.commands.queue import JobId
from node.commands.store import opened
from node.commands.terminal import DEFAULT_CONFIG, AsJson, ConfigFile

if TYPE_CHECKING:
    from node.store import Store

ROUTE_CHANGED = "its route has changed since"


def requeue(job_id: JobId, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Put a refused, failed, held or cancelled job back; by its route as it is now."""
    from node.rules import routing

    with opened(config) as store:
        by_now = routing.of_job(store.config, store.queue.get(job_id))
        number = store.queue.requeue(job_id, who=user(), anew=by_now)
        said = "is queued again" if number == job_id else f"replaces job {job_id}: {ROUTE_CHANGED}"
        _tell(store, number, said, as_json=as_json)


def cancel(job_id: JobId, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Cancel a queued, held, failed or running job; a running one stops at its next step."""
    with opened(config) as store:
        state = store.queue.cancel(job_id, who=user())
        said = "stops at its next step" if state == "running" else "is cancelled"
        _tell(store, job_id, said, as_json=as_json)


def redeliver(
    job_id: JobId,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="NAME",
            help="One destination; else those of the job.",
            autocompletion=destinations,
        ),
    ] = "",
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Send the derived series of a job once more, without inference."""
    with opened(config) as store:
        if to:
            store.config.destination(to)
        store.ledger.redeliver(job_id, to or None, who=user())
        _tell(store, job_id, f"is delivered again{f' to {to}' if to else ''}", as_json=as_json)


def _tell(store: "Store", job_id: int, said: str, *, as_json: bool) -> None:
    if as_json:
        from node.web.api import inputs

        job, deliveries = store.queue.get(job_id), store.ledger.of_job(job_id)
        terminal.print_json(inputs.job(job, deliveries, store.zone))
    else:
        terminal.say(f"Job {job_id} {said}.")

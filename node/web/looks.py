"""Who saw a patient's pictures: an audit event for each, but not one for each picture of a page."""

import threading

from storage.site.audit import Audit

# Within it, further pictures of the job are the same look of the same person.
SAME_SECONDS = 600.0
MOST_KEPT = 10_000  # looks that are remembered; of a forgotten one there is a further event


class Looks:
    """What was written down lately; made once a process."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._since: dict[tuple[str, int], float] = {}  # the oldest first
        self._turn = threading.Lock()

    def at_pictures(self, who: str, job_id: int, now: float) -> None:
        """Write down that `who` looks at pictures of a job, unless that was just written.

        It is written before anything is shown: where it cannot be, nothing is.
        """
        look = who, job_id
        with self._turn:  # a page asks for many at once
            since = self._since.get(look)
            if since is not None and 0 <= now - since < SAME_SECONDS:
                return
            self._audit.record(who, "look at pictures", f"job {job_id}")
            self._since.pop(look, None)
            self._since[look] = now
            while len(self._since) > MOST_KEPT:
                self._since.pop(next(iter(self._since)))

"""Does what people ask for: each wish is taken up by one node, done, and answered."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from node.errors import UsageError
from node.work.channels import NotSent
from node.work.notify import Notifier
from node.work.reach import Reachability
from node.work.selftest import SelfTests
from storage.database import Database
from storage.errors import StorageError
from storage.records import Wish, WishKind
from storage.site import control

logger = logging.getLogger(__name__)

FAULT = "The node's own code raised an exception; the log has the frames."


@dataclass
class Errands:
    """The sweep over wishes; what may take its time has a thread of its own."""

    database: Database
    node_id: str
    now: Callable[[], float]
    reach: Reachability
    tests: SelfTests
    notifier: Notifier
    process_now: Callable[[str, str], str]  # Series UID, who -> what was done
    ask_reload: Callable[[], None]

    def sweep(self) -> None:
        """Take up what is asked for."""
        for wish in control.asked(self.database):
            if wish.node is not None or not control.take(self.database, wish.id, self.node_id):
                continue
            if wish.kind is WishKind.RELOAD:
                self.ask_reload()  # the main thread does it, and says what came of it
            elif wish.kind is WishKind.PROCESS_NOW:
                self._do(wish)
            else:
                name = f"wish-{wish.id}"
                threading.Thread(target=self._do, args=(wish,), daemon=True, name=name).start()
        control.give_up(self.database, self.now())

    def reloaded(self, *, ok: bool, sentence: str) -> None:
        """Answer everybody who has asked for the configuration to be read again."""
        for wish in control.asked(self.database):
            if wish.kind is WishKind.RELOAD and wish.node == self.node_id:
                self._close(wish, ok=ok, sentence=sentence)

    def _do(self, wish: Wish) -> None:
        """Do it; whatever happens, whoever asked is told."""
        try:
            ok, sentence = self._done(wish)
        except (NotSent, StorageError, UsageError) as error:
            ok, sentence = False, str(error)
        except Exception:
            logger.exception("wish not done", extra={"wish": wish.id, "kind": str(wish.kind)})
            ok, sentence = False, FAULT
        self._close(wish, ok=ok, sentence=sentence)

    def _done(self, wish: Wish) -> tuple[bool, str]:
        match wish.kind:
            case WishKind.ECHO:
                return self._echo(wish.subject)
            case WishKind.SELFTEST:
                found = self.tests.run(wish.who)
                return found.state == "passed", found.sentence
            case WishKind.NOTIFY:
                return True, self.notifier.test(wish)
            case _:
                return True, self.process_now(wish.subject, wish.who)

    def _echo(self, name: str) -> tuple[bool, str]:
        for destination in self.reach.destinations:
            if destination.name == name:
                answer = self.reach.echo(destination)
                return answer.ok, f"{answer.sentence} {answer.seconds:.2f} s"
        raise UsageError(f"no destination {name!r} is configured")

    def _close(self, wish: Wish, *, ok: bool, sentence: str) -> None:
        control.close(self.database, self.now(), wish.id, ok=ok, sentence=sentence)
        logger.info("wish done", extra={"wish": wish.id, "kind": str(wish.kind), "ok": ok})

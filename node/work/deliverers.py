"""The deliverers of a node: one a configured destination, replaced where it has changed."""

from collections.abc import Callable
from dataclasses import dataclass, field

from node.config import Config
from node.work import deliver
from node.work.deliver import Deliverer
from node.work.reach import Reachability
from storage.files import Files
from storage.ledger import Ledger


@dataclass
class Deliverers:
    """All of them; `follow` is called whenever the configuration was read."""

    ledger: Ledger
    files: Files
    reach: Reachability
    now: Callable[[], float]
    _settings: Config | None = None
    _by_name: dict[str, Deliverer] = field(default_factory=dict)

    def follow(self, settings: Config) -> None:
        """One for each destination of the configuration; those that are gone or changed end."""
        self._settings = settings
        wanted = {d.name: d for d in settings.destinations}
        for name, deliverer in list(self._by_name.items()):
            if wanted.get(name) != deliverer.destination:
                deliverer.stop()  # its thread ends after the instance that is on the wire
                del self._by_name[name]
        for name, destination in wanted.items():
            if name in self._by_name:
                self._by_name[name].settings = settings.delivery
                continue
            self._by_name[name] = Deliverer(
                destination,
                settings.node.ae_title,
                self.ledger,
                self.files,
                settings.delivery,
                self.now,
                self.reach,
            )
            self._by_name[name].start()

    def mind_unknown(self) -> None:
        """Hold what waits for a destination that nobody has configured, until somebody does."""
        if self._settings is not None:
            deliver.mind_unknown(self.ledger, self._settings.destinations)

    def drain(self) -> None:
        """Begin no further delivery; what runs goes on."""
        for deliverer in self._by_name.values():
            deliverer.drain()

    def wait(self, seconds: float) -> bool:
        """True when nothing is being sent any more; each is waited for so long at most."""
        return all(deliverer.wait(seconds) for deliverer in self._by_name.values())

    def abandon(self) -> None:
        """End now, whatever is on the wire."""
        for deliverer in self._by_name.values():
            deliverer.abandon()

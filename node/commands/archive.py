"""Commands about what is kept."""

from node.commands import terminal
from node.commands.store import opened
from node.commands.terminal import DEFAULT_CONFIG, AsJson, ConfigFile


def reindex(config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Rebuild the index from the archive; what is acknowledged is never removed."""
    from node.app import received_of

    with opened(config) as store:
        found = store.archive.reindex(received_of)
    facts = {
        "indexed": len(found.indexed),
        "removed": len(found.removed),
        "unreadable": list(found.unreadable),
        "missing": list(found.missing),
    }
    if as_json:
        terminal.print_json(facts)
        return
    terminal.say(f"{len(found.indexed)} files of the archive were not in the index and are now.")
    for path in found.unreadable:
        terminal.say(f"unreadable, left where it is: {path}", style="yellow")
    for path in found.missing:
        terminal.say(f"in the index, but gone from the archive: {path}", style="red")

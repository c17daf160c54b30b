"""Commands that keep and bring back what a node knows: `backup` and `restore`."""

import fcntl
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands import terminal
from node.commands.terminal import DEFAULT_CONFIG, AsJson, ConfigFile, opened
from node.errors import UsageError

if TYPE_CHECKING:
    from node.config import Config

ENDS = ("-wal", "-shm", "")  # of the files of an SQLite database: the journal goes first
BackupFile = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]


def backup(file: BackupFile, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Write database, secret and configuration into one file; the node may go on."""
    from storage import backup as backups

    with opened(config) as store:
        secret = store.files.secret(store.config.storage.secret_file)
        made = backups.back_up(
            store.database, file, time.time(), secret=secret, configuration=config.read_bytes()
        )
    rows = sum(made.rows.values())
    if as_json:
        terminal.print_json({"file": str(file), "rows": rows})
        return
    terminal.say(f"{file} has {rows} rows of {len(made.rows)} tables, secret and configuration.")
    terminal.say("It holds the secret: keep it where only administrators read it.")


def restore(file: BackupFile, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Bring a backup back; the node is stopped. What is there already is moved aside, or kept."""
    from node.config import load
    from node.dicom.handlers import identify_file
    from storage import backup as backups
    from storage import recovery

    configuration = backups.read(file, backups.CONFIGURATION)
    if is_new := bool(configuration) and not config.exists():
        config.write_bytes(configuration)
        config.chmod(0o600)
    settings = load(config)
    with ExitStack() as stack:
        _refuse_running(settings, stack)
        _put_secret(settings, backups.read(file, backups.SECRET))
        rows, aside = _put_rows(settings, file)
    with opened(config) as store:
        called_ae = settings.node.ae_title
        found = recovery.reindex(store.archive, identify_file, called_ae=called_ae)
    indexed, missing = len(found.indexed), len(found.missing)
    if as_json:
        facts = {"rows": rows, "moved_to": str(aside or ""), "indexed": indexed}
        terminal.print_json(facts | {"missing": missing, "configuration_written": is_new})
        return
    if is_new:
        terminal.say(f"{config} is written.")
    if aside is not None:
        terminal.say(f"The database that was there is {aside} now.")
    terminal.say(
        f"{rows} rows are back. {indexed} files of the archive were received since, and arrive "
        f"once more when the node starts; {missing} are gone since."
    )


def _refuse_running(settings: "Config", stack: ExitStack) -> None:
    """Refuse while a node runs on the folder, and let none start until the end."""
    for path in settings.folder.glob("node-*.lock"):
        lock = stack.enter_context(path.open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"a node is running on {settings.folder}; stop it first") from None


def _put_secret(settings: "Config", secret: bytes) -> None:
    from storage.files import SECRET, put_secret

    path = settings.storage.secret_file or settings.folder / SECRET
    if not put_secret(path, secret):
        raise UsageError(
            f"{path} is another secret than the one of the backup; move it away first, and keep it"
        )


def _put_rows(settings: "Config", file: Path) -> tuple[int, Path | None]:
    """Restore the rows; how many, and where an SQLite database is now that was there."""
    from storage import backup as backups
    from storage.database import FILE_NAME, Database
    from storage.files import sync

    url = settings.storage.database
    with closing(Database.for_folder(settings.folder, url)) as database:
        if not database.is_sqlite:
            return sum(backups.restore(file, database).rows.values()), None
        place = Path(str(database.url.database))
    fresh = place.with_name(f".{FILE_NAME}.restored")
    _remove(fresh)
    with closing(Database(f"sqlite:///{fresh}")) as database:
        rows = sum(backups.restore(file, database).rows.values())
    aside = place.with_name(f"{place.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
    had_one = place.exists()
    for end in ENDS:
        part = place.with_name(f"{place.name}{end}")
        if part.exists():
            part.rename(aside.with_name(f"{aside.name}{end}"))
    fresh.rename(place)
    sync(place.parent)
    return rows, aside if had_one else None


def _remove(database: Path) -> None:
    for end in ENDS:
        database.with_name(f"{database.name}{end}").unlink(missing_ok=True)

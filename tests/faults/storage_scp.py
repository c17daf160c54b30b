"""Archive and Storage SCP in a process of their own, without the rest of the node.

Run as `python -m tests.faults.storage_scp FOLDER`; it prints its port, and ends with its input.
"""

import faulthandler
import signal
import sys
import time
from pathlib import Path

from node.dicom.admission import Admission
from node.dicom.scp import Scp, ScpSettings
from storage.archive import Archive
from storage.database import Database
from storage.files import Files


def serve(folder: Path, *, is_direct: bool) -> None:
    """Receive into the folder until the input ends."""
    faulthandler.register(signal.SIGUSR1)  # prints where each thread is, for a test that waits
    database = Database.for_folder(folder)
    database.migrate()
    files = Files(folder, 0)
    settings = ScpSettings("MIDSLICE", "127.0.0.1", 0, incoming=files.incoming, is_direct=is_direct)
    scp = Scp(settings, Admission(), Archive(database, files, time.time))
    sys.stdout.write(f"{scp.start()}\n")
    sys.stdout.flush()
    sys.stdin.read()
    scp.abort()
    database.close()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), is_direct="direct" in sys.argv[2:])

"""The errors of rows and files.

StorageError
+-- NoRoom          the disk is below its reserve or full: the peer may try again later
+-- Busy            the database stayed locked or away: the peer may try again later
+-- DatabaseDamaged the bytes of the database are not what it wrote: a backup is needed
+-- LeaseLost       another worker has taken the job or the delivery over
+-- NotFound        no such job, series or delivery
+-- WrongState      the row is not in a state that allows the request
+-- SecretMismatch  the secret is not the one that this database was made with
"""


class StorageError(Exception):
    """Anything that this package raises on purpose; its text holds no patient data."""


class NoRoom(StorageError):
    """The disk is below the configured reserve, or full."""


class Busy(StorageError):
    """The database could not take the write in time."""


class DatabaseDamaged(StorageError):
    """The database finds its own bytes changed."""


class LeaseLost(StorageError):
    """The attempt that writes is no longer the one that holds the lease."""


class NotFound(StorageError):
    """There is no such row."""


class WrongState(StorageError):
    """The row is in a state from which the requested transition does not exist."""


class SecretMismatch(StorageError):
    """Derived UIDs made with another secret would differ from those already sent."""

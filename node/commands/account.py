"""Who acts at the command line, for the audit events."""

import getpass


def user() -> str:
    """The account of the system."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in a container
        return "unknown"

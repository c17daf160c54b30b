"""Which file system a path lies on, as far as Linux tells."""

from pathlib import Path

MOUNTS = Path("/proc/self/mounts")

# File systems over a network, where locks or shared memory do not work as SQLite needs them.
NETWORK = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse.ceph", "fuse.glusterfs"),
        *("fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"),
        *("ocfs2", "orangefs", "smb2", "smb3", "smbfs", "vboxsf", "vmhgfs"),
    }
)


def network_file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The type of the network file system that `path` lies on, or None for a local disk."""
    if not mounts.exists():
        return None
    kind = _file_system(path.resolve(), mounts.read_text(errors="replace"))
    return kind if kind in NETWORK else None


def _file_system(path: Path, mounts: str) -> str:
    """The type of the mount nearest to `path`; of two at one place the later covers the first."""
    nearest, found = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(_unescaped(fields[1]))
        if path.is_relative_to(point) and len(point.parts) >= nearest:
            nearest, found = len(point.parts), fields[2]
    return found


def _unescaped(field: str) -> str:
    """Spaces, tabs and backslashes are octal in this file."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field

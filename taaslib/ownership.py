"""Whose files are they?  Root leaves what the service needs to the user that the service runs as.

Knows nothing of what is in the files.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

Owner = tuple[int, int]  # uid, gid

def uid_gid(user: str) -> Owner:
    """The numbers of USER.  Raises LookupError."""
    try:
        import pwd  # not on Windows

        entry = pwd.getpwnam(user)
    except (ImportError, KeyError):
        raise LookupError(f"there is no user {user!r}") from None
    return entry.pw_uid, entry.pw_gid

def owner_of_files(user: str) -> Owner | None:
    """Whom root leaves files to when taas.ini names USER; None: nobody else.  Raises LookupError."""
    if not user or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    return uid_gid(user)

def make_folder(folder: Path, owner: Owner | None) -> None:
    """Make FOLDER where it is missing, and only then leave it to OWNER: another one may hold our code."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        if owner:
            os.chown(folder, *owner)

@contextlib.contextmanager
def acting_as(user: str, owner: Owner | None) -> Iterator[None]:
    """Reach files as USER does, whose numbers are OWNER, for a while; None: as we are."""
    if not owner:
        yield
        return
    groups = os.getgroups()
    os.initgroups(user, owner[1])
    os.setegid(owner[1])
    os.seteuid(owner[0])
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(os.getgid())
        os.setgroups(groups)

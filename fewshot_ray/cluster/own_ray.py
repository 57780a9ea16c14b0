"""Prepares the environment of a local Ray that a sweep starts for itself."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from fewshot_ray.cluster.ray_private import longest_socket, temporary_folder
from fewshot_ray.errors import UserError

__all__ = ["bring_token", "check_folder"]

TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Variables with which a user sets Ray's authentication; where one is set, no token is made here."""
MOST_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107


def check_folder() -> None:
    """Raise UserError where Ray can't use its temporary folder: not writable, or too long a path for its sockets."""
    folder = temporary_folder()
    right = "RAY_TMPDIR naming a folder that is there, can be written and has a short path (/tmp, say) would be right"
    over = len(os.fsencode(longest_socket(folder))) - MOST_SOCKET_BYTES
    if over > 0:
        raise UserError(f"Ray's folder {folder}: its path is {over} bytes too long for the sockets in it; {right}")
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"Ray's folder {folder}: can't be written; {right}")


def bring_token() -> None:
    """Set a token for a local Ray where Ray could neither read nor write one, for want of a home directory."""
    if any(name in os.environ for name in TOKEN_VARIABLES):
        return
    place = Path(os.path.expanduser("~")) / ".ray"
    try:
        place.mkdir(parents=True, exist_ok=True)
        usable = place.is_absolute() and (os.access(place / "auth_token", os.R_OK) or os.access(place, os.W_OK | os.X_OK))
    except OSError:
        usable = False
    if not usable:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

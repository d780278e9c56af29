"""The token that a server asks for and a device shows."""

from __future__ import annotations

import os
from pathlib import Path

from edgesdk_converters.errors import DeviceError


def read_token(path: Path | None) -> str:
    """The token in a file, without the line end; without a file that of EDGESDK_TOKEN, or none. Raises DeviceError."""
    if path is None:
        return checked_token(os.environ.get("EDGESDK_TOKEN", ""), "EDGESDK_TOKEN")
    try:
        found = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DeviceError(f"{path} cannot be read: {error}", "give a text file that holds the token") from error
    if not found:
        raise DeviceError(f"{path} is empty", "put the token in it, on one line")
    return checked_token(found, str(path))


def checked_token(token: str, origin: str) -> str:
    """The token, where it can stand in a header. Raises DeviceError where it cannot."""
    if not token.isascii() or any(character <= " " or character == "\x7f" for character in token):
        raise DeviceError(f"the token from {origin} has spaces, control or other characters than ASCII", "use letters and digits")
    return token

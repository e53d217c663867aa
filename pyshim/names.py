"""What may name a container, an exec or a namespace, of all of which files are named.  Pure."""

from __future__ import annotations

# A file's name has 255 (limits.h, NAME_MAX), of which some are for what is put around an id; the
# containerd daemon itself lets no more than 76 pass.
MAX_BYTES = 200
MAX_SHOWN_CHARS = 80  # of a name that is none, in a message


def is_name(text: str) -> bool:
    """Whether ``text`` can be part of a file's name, and no more than that.

    A runtime may be stricter; the daemons are.
    """
    if not text or text in {".", ".."} or "/" in text:
        return False
    if any(ord(character) < ord(" ") or character == "\x7f" for character in text):
        return False
    return len(text.encode("utf-8", "surrogateescape")) <= MAX_BYTES

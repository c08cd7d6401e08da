"""What bytes from another process can be wrong in. Each means: this peer cannot be followed.

    ValueError
    └── WireError           a value that the wire cannot carry, or bytes that mean nothing
        ├── Truncated       fewer bytes than the layout has
        ├── TooLong         more bytes than the layout or the limit allows
        ├── UnknownRequest  a reply, or a builder's request, that the protocol does not have
        ├── BadFlags        header flags that this side never sends
        └── WrongFdCount    not the number of file descriptors that the message carries

A request with an unknown number is none of these: it is delivered, so that it can be refused.
"""

from __future__ import annotations


class WireError(ValueError):
    """The root: catch this one for "the peer speaks wrongly"."""


class Truncated(WireError):
    """Bytes end before the layout does."""


class TooLong(WireError):
    """Bytes go on after the layout's end, or a size is beyond the side's limit."""


class UnknownRequest(WireError):
    """There is no such message in this direction."""


class BadFlags(WireError):
    """The header's flags are not those of this direction, so the stream is not in step."""


class WrongFdCount(WireError):
    """File descriptors came where none belong, or are missing."""

"""How much of a quota one guest has used, for the operator. A leaf."""

from __future__ import annotations

from typing import NamedTuple


class Usage(NamedTuple):
    """`used` of at most `limit`, and how often more was asked for and `refused`."""

    used: int
    limit: int
    refused: int

"""What another system sees of a station by a line protocol, for people who connect the two."""

from typing import NamedTuple


class Value(NamedTuple):
    """One thing that the other system reads or writes."""

    place: str
    """Register, node or topic."""
    name: str
    value: str
    meaning: str = ""


class Shown(NamedTuple):
    """One protocol, now."""

    protocol: str
    place: str
    """Address, topic or folder."""
    fault: str
    """Why it does not work now; empty: it works."""
    values: list[Value]

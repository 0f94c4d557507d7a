"""Values of a line protocol for display, to help people connect another system."""

from typing import NamedTuple


class Value(NamedTuple):
    """One value that the other system reads or writes."""

    place: str
    """Register, node or topic."""
    name: str
    value: str
    meaning: str = ""


class Shown(NamedTuple):
    """The present values of one protocol."""

    protocol: str
    place: str
    """Address, topic or folder."""
    fault: str
    """Reason why it does not work now; empty: it works."""
    values: list[Value]

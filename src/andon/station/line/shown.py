"""Values of a line protocol for display, to help people connect another system."""

from typing import NamedTuple

from andon import files
from andon.station.station import Station


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


def lacking(station: Station, product: str) -> str:
    """Return why a product of the settings cannot inspect before a person acts; empty: nothing is lacking."""
    products = station.products.catalogue.products
    if product in products and products[product].active:
        return ""
    if files.is_file(station.config.bundles / f"{product}.andon"):  # it is being loaded, or has failed
        return station.products.fault(product) or ""
    if product in products:
        return f"product '{product}' has no active bundle. Release and activate one."
    return f"product '{product}' does not exist. Upload, release and activate a bundle, or correct the settings."

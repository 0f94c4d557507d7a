"""The HTTP interface of a station."""

"""The HTTP interface of a station: one view of it, as all others are."""

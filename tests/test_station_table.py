"""The table of OPC 40100-1 agrees with itself: its numbers, names and states."""

from andon.station.table import STATES, TRANSITIONS


def test_numbers_and_names_are_unique() -> None:
    assert len({t.number for t in TRANSITIONS}) == len({t.name for t in TRANSITIONS}) == len(TRANSITIONS) == 35


def test_a_number_begins_with_its_states() -> None:
    for t in TRANSITIONS:
        assert t.number // 10 == 10 * STATES[t.source] + STATES[t.target], t


def test_a_name_holds_its_states_and_whether_it_is_automatic() -> None:
    for t in TRANSITIONS:
        assert t.name.startswith(f"{t.source}To{t.target}"), t
        assert t.name.endswith("Auto") == (t.method is None), t

"""What is said of alarms: once when one begins, now and then while it lasts, once when it ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidegate.server.slot_watch import REPEAT_S, News, news

slots = st.sets(st.sampled_from(["a", "b", "c"]))


def test_an_alarm_begins_lasts_and_ends() -> None:
    first, said = news({}, ["a"], 0.0)
    assert first == [News("begins", "a")]
    assert news(said, ["a"], REPEAT_S - 1) == ([], said)
    again, said = news(said, ["a"], REPEAT_S)
    assert again == [News("lasts", "a")]
    assert news(said, [], REPEAT_S + 1) == ([News("ends", "a")], {})


@given(st.lists(st.tuples(slots, st.floats(0, 400)), max_size=20))
def test_nobody_is_told_more_often_than_needed_and_nothing_is_forgotten(
    looks: list[tuple[set[str], float]],
) -> None:
    said: dict[str, float] = {}
    now, open_alarms, last = 0.0, set[str](), dict[str, float]()
    for alarms, pause in looks:
        now += pause
        found, said = news(said, alarms, now)
        for each in found:
            match each.what:
                case "begins":
                    assert each.slot not in open_alarms
                    open_alarms.add(each.slot)
                case "lasts":
                    assert now - last[each.slot] >= REPEAT_S
                case _:
                    open_alarms.remove(each.slot)
            last[each.slot] = now
        assert open_alarms == alarms == set(said)
        assert all(now - last[slot] < REPEAT_S for slot in alarms)

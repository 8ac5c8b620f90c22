"""How writes come to be refused: every case, and every run of cases, without servers."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tidegate.workflow.denying import Denial, next_denial

CASES = {
    # (holders, drained, late): next
    (False, None, False): Denial.DENY,
    (False, None, True): Denial.DENY,
    (True, None, False): Denial.WAIT,
    (True, None, True): Denial.GIVE_UP,
    (False, True, False): Denial.DONE,
    (False, True, True): Denial.DONE,
    (True, True, False): Denial.DONE,
    (True, True, True): Denial.DONE,
    (False, False, False): Denial.LIFT,
    (False, False, True): Denial.GIVE_UP,
    (True, False, False): Denial.LIFT,
    (True, False, True): Denial.GIVE_UP,
}


def test_every_case_has_one_answer() -> None:
    for held, drained, late in itertools.product((False, True), (None, True, False), (False, True)):
        for now in (10.0, 11.0) if late else (9.0,):
            found = next_denial(["one"] if held else [], drained, now, 10.0)
            assert found is CASES[held, drained, late], (held, drained, late)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40), st.integers(0, 20))
def test_nobody_is_waited_for_behind_the_fence_and_it_ends(
    world: list[tuple[bool, bool]], deadline: int
) -> None:
    """The loop of the step, a second a turn, beside transactions that come and go as drawn."""
    is_denying = False
    turns = iter([*world, *[(True, False)] * (deadline + 2)])
    for now, (is_held, is_drained) in enumerate(turns):
        told = next_denial(
            ["one"] if is_held else [], is_drained if is_denying else None, now, deadline
        )
        if told in {Denial.DONE, Denial.GIVE_UP}:
            assert (told is Denial.DONE) == (is_denying and is_drained)
            assert told is Denial.DONE or now >= deadline
            return
        if is_denying:
            assert told is Denial.LIFT
        else:
            assert told is (Denial.WAIT if is_held else Denial.DENY)
        is_denying = told is Denial.DENY
    raise AssertionError("it did not end")

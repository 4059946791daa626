"""Every wrong input of the counted list gets a clear answer."""

from __future__ import annotations

import pytest

from tests.faults.wrong_inputs import Answer, WrongInput, all_cases, ask, flaws


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_answer(case: WrongInput) -> None:
    answer = ask(case)
    assert flaws(case, answer) == [], answer.text


def test_unclear_answers_are_noticed() -> None:
    case = WrongInput("a case", lambda folder: Answer(False, ""), ("word",))
    good = "Something is wrong with a word.\n  remedy: Mend it."
    assert flaws(case, Answer(True, good)) == []
    assert flaws(case, Answer(False, good)) != [], "taken silently"
    assert flaws(case, Answer(True, "A word.")) != [], "no way out"
    assert flaws(case, Answer(True, "Something.\n  remedy: Mend it.")) != [], "no cause"
    assert flaws(case, Answer(True, f"{good}\nTraceback (most recent call last)")) != []
    assert flaws(case, Answer(True, good + "\n" * 30 + "more")) != [], "too long"

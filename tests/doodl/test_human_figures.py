"""The figures of human studies, against counts made by hand."""

import pytest

from doodl.measures.human import (
    Vote,
    fleiss_kappa,
    pairwise_figures,
    rating_figures,
)

# Three raters; by item: what each chose. The second method is "after".
PAIRS = {
    "all for it": ["after", "after", "after"],
    "two of three": ["after", "after", "before"],
    "all against": ["before", "before", "before"],
    "no majority": ["after", "draw", "before"],
    "drawn by two": ["draw", "draw", "after"],
}


def votes(items, **options):
    return [
        Vote(item, f"rater {i}", choice, **options)
        for item, chosen in items.items()
        for i, choice in enumerate(chosen)
    ]


def counts(figures):
    return figures.wins, figures.draws, figures.losses, figures.undecided


def test_win_draw_loss_is_counted_in_three_ways():
    figures = pairwise_figures(votes(PAIRS), "before", "after")
    assert counts(figures.aggregate) == (7, 3, 5, 0)
    assert counts(figures.majority) == (2, 2, 1, 0)
    assert counts(figures.unanimous) == (1, 0, 1, 3)
    assert figures.aggregate.shares() == (7 / 15, 3 / 15, 5 / 15)
    assert (figures.num_items, figures.num_raters) == (5, 3)
    # (1 + 2/3 + 0 + 1/2 + 2/3) / 5
    assert figures.score.mean == pytest.approx(17 / 30)
    assert figures.score.low < figures.score.mean < figures.score.high


def test_one_rater_alone_is_majority_and_unanimous_at_once():
    one = [Vote("a", "x", "after"), Vote("b", "x", "before"), Vote("c", "x", "draw")]
    figures = pairwise_figures(one, "before", "after")
    assert counts(figures.majority) == counts(figures.unanimous) == (1, 1, 1, 0)
    assert figures.kappa is None


def test_a_raters_later_word_stands():
    twice = [Vote("a", "x", "before"), Vote("a", "x", "after")]
    figures = pairwise_figures(twice, "before", "after")
    assert counts(figures.majority) == counts(figures.aggregate) == (1, 0, 0, 0)
    rated = [Vote("a", "x", 1), Vote("a", "x", 4), Vote("b", "x", 2)]
    assert rating_figures(rated)[0].aggregate == 0.5


def test_a_choice_of_another_study_is_refused():
    with pytest.raises(ValueError, match="guided"):
        pairwise_figures([Vote("a", "x", "guided")], "before", "after")


def test_four_levels_are_counted_in_three_ways_for_each_method():
    guided = {"a": [4, 4, 3], "b": [3, 2, 4], "c": [1, 2, 3]}
    plain = {"d": [1, 1, 2], "e": [2, 3, 1]}
    figures = rating_figures(votes(guided, method="guided") + votes(plain, method="unguided"))
    assert [f.method for f in figures] == ["guided", "unguided"]
    first, second = figures
    assert first.counts == (1, 2, 3, 3)
    assert first.aggregate == pytest.approx(6 / 9)
    assert first.majority == pytest.approx(2 / 3)
    assert first.unanimous == pytest.approx(1 / 3)
    assert first.mean.mean == pytest.approx((11 / 3 + 3 + 2) / 3)
    assert (second.aggregate, second.majority, second.unanimous) == (pytest.approx(1 / 6), 0, 0)
    assert rating_figures(votes(guided), accept=4)[0].aggregate == pytest.approx(3 / 9)


@pytest.mark.parametrize("level", [0, 5, "left", 2.0])
def test_a_level_that_is_none_is_refused(level):
    with pytest.raises(ValueError, match="level"):
        rating_figures([Vote("a", "x", level)])


def test_kappa_is_fleisss_own_example():
    # Fleiss (1971), table 1 as commonly worked: 10 subjects, 14 raters, 5 categories.
    table = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    items = [[k for k, n in enumerate(row) for _ in range(n)] for row in table]
    assert fleiss_kappa(items) == pytest.approx(0.210, abs=0.001)


def test_kappa_is_one_where_all_agree_and_none_where_it_means_nothing():
    assert fleiss_kappa([["a", "a"], ["b", "b"]]) == pytest.approx(1)
    assert fleiss_kappa([["a", "a"], ["a", "a"]]) is None
    assert fleiss_kappa([["a"], ["b"]]) is None
    assert fleiss_kappa([]) is None

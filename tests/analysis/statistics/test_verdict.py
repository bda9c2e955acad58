"""The verdict on the whole thought, on tables whose outcomes are built pair by pair."""

import numpy as np
import pandas as pd
import pytest

from codi_tracing.analysis.statistics.ceiling import Estimate
from codi_tracing.analysis.statistics.results import Results
from codi_tracing.analysis.statistics.verdict import Closed, label_of, verdict
from tests.support.tables import WRONG, outcomes


def thoughts(partner, unrelated="o" * 60, **options) -> pd.DataFrame:
    """A table of whole thoughts alone."""
    return outcomes({(None, "other"): partner, (None, "unrelated"): unrelated}, **options)


def sentence(table: pd.DataFrame) -> str:
    return verdict(table).sentence


def share(count: int, n: int = 60) -> str:
    """Outcomes of n pairs, the partner's answer in so many of them, else the host's."""
    return "p" * count + "h" * (n - count)


@pytest.mark.parametrize(
    ("partner", "unrelated", "label"),
    [
        (share(60), "o" * 60, "carried"),
        ({"denoising": share(60), "noising": share(9)}, "o" * 60, "one direction only"),
        (share(27), "o" * 60, "partly carried"),
        (share(0), "o" * 60, "needed, not carried"),
        ("o" * 60, "o" * 60, "needed, not carried"),
        (share(0), "h" * 60, "unused"),
        (share(12), "o" * 60, "undecided"),
    ],
)
def test_the_first_rule_that_the_intervals_meet_decides(partner, unrelated, label):
    found = verdict(thoughts(partner, unrelated))
    assert found.label == label
    assert "n = 60 pairs in 60 clusters" in found.sentence


def test_numbers_between_the_rules_have_no_label_where_no_interval_holds_a_bound():
    middle = Estimate(0.3, 0.25, 0.4, 500, 500)
    little, whole = Estimate(0.1, 0.05, 0.15, 500, 500), Estimate(1.0, 0.98, 1.0, 500, 500)
    assert label_of(middle, little, whole, whole) == ("no label", "")
    wide = middle._replace(low=0.1)
    label, reason = label_of(wide, little, whole, whole)
    assert label == "undecided"
    assert "transfer, denoising, 0.30 [0.10, 0.40], contains 0.2" in reason


def test_where_every_exchanged_run_loses_its_answer_the_thought_is_needed_and_not_carried():
    """An effect on the logit difference would be one half in both directions, and was once called carried."""
    table = outcomes({(layer, source): "o" * 60 for layer in (None, 0, 1) for source in ("other", "unrelated")})
    found = Results(table)
    assert found.verdict.label == "needed, not carried"
    assert not found.sites()["critical"].any()
    assert found.largest.site is None
    assert (
        "thought in 0 % [0, 6] denoising and 0 % [0, 6] noising (n = 60 pairs in 60 clusters)" in found.verdict.sentence
    )


@pytest.mark.parametrize("carrying", [29, 32, 33, 37])
def test_a_population_of_which_half_carries_is_partly_carried_on_either_side_of_the_half(carrying):
    found = verdict(thoughts(share(carrying, 66), "o" * 66))
    assert found.label == "partly carried"
    assert f"follows the other run's thought in {100 * carrying / 66:.0f} % [" in found.sentence


def test_one_direction_is_named_with_both_numbers():
    found = sentence(thoughts({"denoising": share(27, 200), "noising": share(200, 200)}, "o" * 200))
    assert found.startswith("One direction only: the thought carries the answer noising and not denoising.")
    assert "in 14 % [" in found
    assert "Specific transfer: 0.1" in found
    assert "1.00 [0.98, 1.00] noising" in found
    found = verdict(thoughts({"denoising": share(90, 200), "noising": share(200, 200)}, "o" * 200))
    assert found.label == "partly carried"  # the interval of 0.45 in 200 clusters reaches 0.5
    found = verdict(thoughts({"denoising": share(450, 1000), "noising": share(1000, 1000)}, "o" * 1000))
    assert found.label == "one direction only"


@pytest.mark.parametrize("pairs", range(1, 8))
def test_below_eight_clusters_there_are_shares_and_no_label(pairs):
    found = Results(thoughts(share(pairs, pairs), "o" * pairs)).summary
    assert found["verdict"]["label"] == "undecided"
    assert f"(n = {pairs}), {pairs} cluster" in found["sentences"][0]
    assert "fewer than the 8 that intervals and tests need (the smallest possible p is" in found["sentences"][0]
    assert "thought in 100 % denoising and 100 % noising (n =" in found["sentences"][0]
    assert "[" not in found["sentences"][0]  # no interval anywhere
    assert verdict(thoughts(share(8, 8), "o" * 8)).label == "carried"


def test_a_model_that_answers_nothing_is_undecided_and_says_why():
    found = verdict(thoughts(share(60), right=False))
    assert found.label == "undecided"
    assert "answers 0 % [0, 6] of the questions correctly, an interval below 10%" in found.sentence
    few = verdict(thoughts(share(60), right=[True] * 2 + [False] * 58))
    assert "Unpatched, 3 % [0, 12] of the answers are right" in few.sentence
    assert few.label == "undecided"


def test_twelve_copies_of_four_pairs_conclude_as_the_four_do():
    four = thoughts("ppph", "oooo")
    copies = thoughts("ppph" * 12, "oooo" * 12, clusters=[*range(4)] * 12)
    assert "(n = 48), 4 clusters are fewer than the 8" in sentence(copies)
    assert verdict(copies).label == verdict(four).label == "undecided"
    sixteen, copied = (
        thoughts(share(12, 16), "o" * 16),
        thoughts(share(12, 16) * 12, "o" * 192, clusters=[*range(16)] * 12),
    )
    once, twelvefold = verdict(sixteen), verdict(copied)
    assert once.label == twelvefold.label
    np.testing.assert_allclose(twelvefold.denoising[:3], once.denoising[:3])
    np.testing.assert_allclose(twelvefold.shares["noising"]["partner"][:3], once.shares["noising"]["partner"][:3])


def test_every_number_has_its_own_n_where_few_pairs_have_a_control():
    table = thoughts(share(13, 13), "o" * 13)
    lone = table["source"].eq("unrelated") & ~table["pair_id"].isin(["0", "1"])
    found = sentence(table[~lone])
    assert "thought in 100 % [75, 100] denoising and 100 % [75, 100] noising (n = 13 pairs in 13 clusters)" in found
    assert "of the answered pairs with a control (n = 2), 2 clusters are fewer" in found
    assert "1.00 noising, an unrelated thought destroys 1.00 of the answer (n = 2 pairs in 2 clusters)" in found


def test_without_an_unrelated_thought_nothing_is_concluded():
    table = thoughts(share(60))
    found = verdict(table[table["source"] != "unrelated"])
    assert found.label == "undecided"
    assert "no pair has an unrelated donor" in found.sentence


def test_a_verdict_needs_both_directions():
    table = thoughts(share(60))
    found = verdict(table[table["direction"] == "denoising"])
    assert found.label == "undecided"
    assert "no rows of site 'thought' in direction 'noising'" in found.sentence


def test_a_table_without_answers_is_undecided_and_names_the_metric():
    table = thoughts(share(60))
    found = Results(table[table["metric"] != "answer_is_clean"])
    assert "no rows of metric 'answer_is_clean'" in found.verdict.sentence
    assert found.summary["answered_pairs"] is None


# Closed answers: a destroyed answer falls at chance, here one of two options.
HALF = [(0.5, 0.5)] * 60


def test_of_two_options_a_destroyed_answer_transfers_half_and_is_not_carried():
    """The control destroys as much, so that the two cancel; without a control the write would look half carried."""
    writes = {(None, "other"): HALF, (None, "unrelated"): HALF, (None, "noise"): HALF}
    found = verdict(outcomes(writes), Closed(2, 0.5))
    assert found.label == "needed, not carried" or found.disruption.effect == pytest.approx(0.5, abs=0.02)
    assert found.denoising.effect == pytest.approx(0, abs=1e-9)
    assert found.denoising.high < 0.2


def test_of_closed_answers_the_control_of_larger_transfer_counts():
    """Unrelated donors that answer like the host transfer nothing; noise shows what destruction alone does."""
    writes = {(None, "other"): HALF, (None, "unrelated"): [(WRONG, 0.98)] * 60, (None, "noise"): HALF}
    table = outcomes(writes)
    assert verdict(table).denoising.effect == pytest.approx(0.5, abs=0.02)
    assert verdict(table, Closed(2, 0.5)).denoising.effect == pytest.approx(0, abs=1e-9)


def test_of_closed_answers_an_accuracy_at_the_commonest_option_decides_nothing():
    right = [True] * 33 + [False] * 27
    found = verdict(thoughts(share(60), right=right), Closed(2, 0.55))
    assert found.label == "undecided"
    assert "the commonest of 2 options is right in 55%" in found.sentence

"""The verdict on the whole thought, on tables with known effects."""

import pytest

from codi_tracing.analysis.statistics.verdict import verdict
from tests.support.tables import experiment


@pytest.mark.parametrize(
    ("thought", "loses", "label"),
    [
        ((0.1, 0.1), 0.1, "unused"),
        ((0.1, 0.1), 0.9, "necessary, not sufficient"),
        ((0.1, 0.9), 0.1, "necessary, not sufficient"),
        ((0.9, 0.1), 0.9, "redundant with the question"),
        ((0.9, 0.9), 0.9, "the answer passes through the thought"),
    ],
)
def test_the_verdict_is_read_from_the_corners(thought, loses, label):
    found = verdict(experiment(thought=thought, loses=loses))
    assert found.label == label
    assert f"{found.denoising.effect:.2f}" in found.sentence
    assert f"takes {loses:.0%} of runs' answers (n = 40 pairs" in found.sentence


def test_without_unrelated_donors_an_unused_and_a_necessary_thought_are_undecided():
    table = experiment(thought=(0.1, 0.1))
    assert verdict(table[table["source"] != "unrelated"]).label == "undecided"


def test_if_harm_is_unknown_the_verdict_says_why():
    table = experiment(thought=(0.1, 0.1))
    assert "no unrelated thought was tried" in verdict(table[table["source"] != "unrelated"]).sentence
    keys = table["metric"].str.startswith("answer_is_")
    never_right = table.assign(**{run: table[run].where(~keys, 0.0) for run in ("patched", "clean", "corrupted")})
    assert "no unpatched run gives its key, so none can lose it" in verdict(never_right).sentence


def test_a_verdict_needs_both_directions_and_runs_that_differ():
    table = experiment()
    one = verdict(table[table["direction"] == "denoising"])
    assert one.label == "undecided"
    assert "direction 'noising'" in one.sentence
    swapped = table.assign(clean=table["corrupted"], corrupted=table["clean"])
    assert verdict(swapped).label == "undecided"  # the clean run prefers the corrupted answer

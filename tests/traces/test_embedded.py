"""The shipped checkpoints agree with their card on a sample."""

import json

import pytest

from codi_tracing.analysis.statistics.results import Results
from codi_tracing.patching.engine.sweep import sweep_cells
from codi_tracing.patching.interventions.cells import make_cells
from codi_tracing.patching.interventions.sites import THOUGHT
from codi_tracing.patching.interventions.sources import other, unrelated
from codi_tracing.patching.pairs.donors import draw_unrelated
from codi_tracing.patching.pairs.pair import load_pairs
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.patching.runs.checks import interchange
from codi_tracing.traces.embedded.card import greedy_accuracy
from codi_tracing.traces.model.loading import load_codi
from codi_tracing.traces.training.word_problems import draw_problems
from tests.support.places import ROOT

EMBEDDED = ROOT / "traces" / "embedded"
CARD = json.loads((EMBEDDED / "card.json").read_text())
PAIRS = load_pairs("arithmetic")


@pytest.fixture(scope="module", params=["thought", "bypass"])
def shipped(request):
    return request.param, load_codi(EMBEDDED / request.param, device="cpu")


@pytest.fixture(scope="module")
def swept(shipped):
    """Whole thoughts exchanged between the two runs of each shipped pair, and with an unrelated donor."""
    name, model = shipped
    ready, excluded = tokenize_pairs(model, PAIRS)
    assert not excluded
    donors = draw_unrelated(ready, seed=0)
    return name, sweep_cells(model, ready, make_cells([THOUGHT], [other, unrelated]), donors=donors), donors


def test_accuracy_is_what_the_card_says(shipped):
    name, model = shipped
    assert greedy_accuracy(model, draw_problems(31_337, 200), model.n_latents) == pytest.approx(
        CARD[name]["accuracy_by_steps"]["6"], abs=0.05
    )


def test_there_are_66_pairs_with_different_answers_and_annotated_chains():
    assert len(PAIRS) == 66
    for pair in PAIRS:
        assert pair.clean.answer != pair.corrupted.answer
        assert len(pair.clean.chain) == len(pair.corrupted.chain) == pair.clean.reasoning_steps


def test_every_shipped_pair_is_answered_correctly_on_both_sides(swept):
    _, table, _ = swept
    for metric, run in (("answer_is_clean", "clean"), ("answer_is_corrupted", "corrupted")):
        assert (table.loc[table["metric"] == metric, run] == 1).all()


def test_verdict_and_ceiling_are_what_the_card_says(swept):
    name, table, _ = swept
    found = Results(table).summary["verdict"]
    assert found["label"] == CARD[name]["verdict"]["label"]
    for number in ("denoising", "noising", "disruption"):
        expected = CARD[name]["verdict"]["numbers"][number]["effect"]
        assert found["numbers"][number]["effect"] == pytest.approx(expected, abs=0.1)


def test_interchange_accuracy_is_what_the_card_says(swept):
    name, table, donors = swept
    assert interchange(table, donors)[0].value == pytest.approx(CARD[name]["interchange_accuracy"], abs=0.15)


def test_both_models_are_accurate_and_only_ones_answer_follows_its_thought():
    thought, bypass = CARD["thought"], CARD["bypass"]
    assert min(thought["accuracy_by_steps"]["6"], bypass["accuracy_by_steps"]["6"]) >= 0.95
    assert (thought["verdict"]["label"], bypass["verdict"]["label"]) == ("carried", "needed, not carried")
    for direction in ("denoising", "noising"):
        assert thought["verdict"]["numbers"][direction]["low"] >= 0.9
        assert bypass["verdict"]["numbers"][direction]["high"] <= 0.2
    assert thought["interchange_accuracy"] >= 0.85
    assert max(max(steps) for steps in thought["transfer"]["step"].values()) <= 0.8

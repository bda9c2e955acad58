"""The lens's tables of the shipped models: decoded intermediates, ranks, and attention."""

import pandas as pd
import pytest

from codi_tracing.analysis.lens.statistics import decodable, match_tokens
from codi_tracing.patching.lens.questions import questions_from_pairs, solved_question
from codi_tracing.patching.lens.tables import lens_tables
from codi_tracing.patching.pairs.pair import load_pairs
from codi_tracing.traces.model.loading import load_codi
from tests.support.places import ROOT

EXACT = 1e-5


@pytest.fixture(scope="module")
def shipped():
    pairs = load_pairs("arithmetic")[:12]
    return {
        name: lens_tables(
            load_codi(ROOT / "traces" / "embedded" / name, device="cpu"), questions_from_pairs(pairs), top=5
        )
        for name in ("thought", "bypass")
    }


def test_the_shipped_thought_decodes_to_its_intermediates_and_bypass_no_more_than_to_another_questions(shipped):
    shares = {
        name: decodable(tables.values.assign(steps=0)).set_index(["measure", "owner"])["share"]
        for name, tables in shipped.items()
    }
    assert shares["thought"]["all of them", "own"] == 1
    assert shares["thought"]["each of them", "another"] < 0.7
    assert shares["bypass"]["each of them", "own"] < 0.6


def test_ranks_found_among_decoded_tokens_equal_the_measured_ranks(shipped):
    tables = shipped["thought"]
    sought = tables.values[["question_id", "owner", "role", "ordinal", "value"]].drop_duplicates()
    keys = ["question_id", "owner", "role", "ordinal", "step", "layer"]
    found = match_tokens(tables.says, sought).set_index(keys)["rank"].sort_index()
    read = tables.values.set_index(keys)["rank"].sort_index()
    pd.testing.assert_series_equal(found, read.where(read <= 5))


def test_tables_keep_the_questions_order_and_leave_out_bots_own_vector(shipped):
    tables = shipped["thought"]
    order = [f"{pair} {side}" for pair in range(12) for side in ("clean", "corrupted")]
    for table in tables:
        assert list(dict.fromkeys(table["question_id"])) == order
    for table in (tables.says, tables.values):
        assert not ((table["step"] == -1) & (table["layer"] == -1)).any()
        assert {(-1, 0), (0, -1), (5, 3)} <= set(zip(table["step"], table["layer"], strict=True))
    assert tables.questions["correct"].all()
    assert (tables.attention.groupby(["question_id", "query", "layer"])["weight"].sum() - 1).abs().max() < EXACT


def test_a_question_longer_than_the_model_reads_is_refused_before_anything_runs(model):
    long = solved_question("long", "long", "Ann had 7 pens. " * 400, ["7+0=7"], 7.0)
    with pytest.raises(ValueError, match="positions"):
        lens_tables(model, [solved_question("short", "short", "Ann had 7 pens.", ["7+0=7"], 7.0), long], batch_size=1)

"""A run patches the pairs that its config selects; correctness is measured, and every excluded pair is counted."""

import re
from pathlib import Path

import pytest

from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.pairs.pair import load_pairs
from codi_tracing.patching.pairs.selection import limited, select_pairs
from codi_tracing.patching.pairs.tokenized import tokenize_pairs

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "patching" / "data" / "arithmetic_pairs.json"


def config(**pairs):
    return RunConfig(name="test", checkpoint="anywhere", pairs={"file": SHIPPED, **pairs})


def test_the_first_pairs_are_taken_and_with_a_seed_others_in_their_order():
    assert limited(5, None, 3) == limited(5, 9, None) == [0, 1, 2, 3, 4]
    assert limited(5, 2, None) == [0, 1]
    drawn = limited(50, 10, 1)
    assert drawn == sorted(set(drawn)) == limited(50, 10, 1)
    assert len(drawn) == 10
    assert drawn not in (limited(50, 10, 2), list(range(10)))


def test_wrongly_answered_pairs_are_excluded_with_the_models_answers(model, pairs):
    with pytest.raises(ValueError, match="none of its 12 pairs passes the filter 'both_correct'; for") as error:
        select_pairs(model, pairs, config(filter="both_correct"))
    assert re.search(
        r"for instance pair \w+: the clean question is answered '.*', its key is \d+ and the corrupted",
        str(error.value),
    )


def test_a_correct_model_keeps_every_pair_but_one_with_a_wrong_key(thought):
    read = load_pairs(SHIPPED)[:8]
    assert select_pairs(thought, read, config(filter="both_correct")).counts == {
        "read": 8,
        "usable": 8,
        "both_correct": 8,
    }
    wrong = read[3].__class__(**{**vars(read[3]), "clean": read[3].clean.__class__(read[3].clean.question, 97.0)})
    chosen = select_pairs(thought, [*read[:3], wrong, *read[4:]], config(filter="both_correct"))
    assert [pair.pair_id for pair, _ in chosen.excluded] == [read[3].pair_id]
    assert "its key is 97" in chosen.excluded[0][1]
    assert len(chosen.ready) == 7


def test_donors_come_from_all_pairs_that_pass_and_not_only_from_those_patched(model, pairs):
    ready, _ = tokenize_pairs(model, pairs)
    everyone = {str(p.pair.pair_id) for p in ready}
    donors = {d.pair_id for drawn in select_pairs(model, pairs, config(limit=3)).donors for d in drawn}
    patched = {str(p.pair.pair_id) for p in select_pairs(model, pairs, config(limit=3)).ready}
    assert len(patched) == 3
    assert donors <= everyone
    assert donors - patched

"""Metrics of whole answers and of decoded answers: probabilities, and what a model's own runs give."""

import math

import numpy as np
import pytest

from codi_tracing.patching.answer_metrics import WHOLE_ANSWER, Keys, gives_clean, gives_corrupted, metrics_of_protocol
from codi_tracing.patching.engine.sweep import sweep
from codi_tracing.patching.interventions.sites import THOUGHT, resid
from codi_tracing.patching.interventions.sources import itself, other, unrelated

METRICS = [*WHOLE_ANSWER, "answer", "gives_clean", "gives_corrupted", "answer_is_clean", "answer_is_corrupted"]


@pytest.fixture(scope="module")
def swept(both, pairs):
    """A few sites of a random model of each family, from every kind of run."""
    usable = [pair for pair in pairs if len(f"{pair.clean.answer:g}") > 1]  # answers of several tokens too
    table = sweep(both, usable[:6] or pairs[:6], [THOUGHT, resid(1)], [other, unrelated, itself], metrics=METRICS)
    keys = [name for name in table if name not in ("metric", "patched", "clean", "corrupted")]
    return table.pivot(index=keys, columns="metric", values=["patched", "clean", "corrupted"]).reset_index()


def test_a_probability_is_the_exponential_of_the_log_probability_of_the_whole_answer(swept):
    for column in ("patched", "clean", "corrupted"):
        for run in ("clean", "corrupted"):
            probability = swept[column, f"probability_{run}"].to_numpy(float)
            np.testing.assert_allclose(probability, np.exp(swept[column, f"logprob_{run}"].to_numpy(float)), rtol=1e-6)
            assert ((probability >= 0) & (probability <= 1)).all()


def test_a_self_patch_gives_its_hosts_answer_and_probabilities(swept):
    own = swept[swept["source"] == "self"]
    for direction, host in (("denoising", "corrupted"), ("noising", "clean")):
        rows = own[own["direction"] == direction]
        for run in ("clean", "corrupted"):
            np.testing.assert_allclose(
                rows["patched", f"probability_{run}"].to_numpy(float),
                rows[host, f"probability_{run}"].to_numpy(float),
                rtol=1e-3,
            )
        known = rows[rows["patched", f"gives_{host}"].notna()]
        assert (known["patched", f"gives_{host}"] == 1).all()


def test_gives_compares_with_the_models_own_runs_and_not_with_the_keys(swept):
    for column in ("patched", "clean", "corrupted"):
        for run in ("clean", "corrupted"):
            own, given = swept[run, "answer"].astype(float), swept[column, "answer"].astype(float)
            expected = (own == given).astype(float).where(own.notna())
            np.testing.assert_array_equal(swept[column, f"gives_{run}"].astype(float), expected)


def test_what_a_run_gives_is_unknown_where_its_unpatched_run_gives_no_number():
    assert math.isnan(gives_clean(5.0, Keys(5.0, 6.0)))
    assert gives_clean(5.0, Keys(1.0, 2.0, own_clean=5.0)) == 1.0
    assert gives_corrupted(5.0, Keys(5.0, 5.0, own_corrupted=6.0)) == 0.0
    assert gives_corrupted(math.nan, Keys(5.0, 5.0, own_corrupted=6.0)) == 0.0


def test_the_single_pass_drops_metrics_of_whole_answers_and_keeps_the_others():
    assert metrics_of_protocol(METRICS, "latent_loop") == METRICS
    assert metrics_of_protocol(METRICS, "single_pass") == METRICS[4:]

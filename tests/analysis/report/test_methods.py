"""The methods text says what the manifest and the table hold, and defines every metric that there is."""

from codi_tracing.analysis.report.methods import citations, definitions, methods
from codi_tracing.configs.vocabulary import METRICS
from codi_tracing.patching.metrics import METRIC_NAMES as MEASURED
from codi_tracing.patching.metrics import STEP_METRICS
from tests.support.tables import experiment

MANIFEST = {
    "experiment": "sweep",
    "protocol": "latent_loop",
    "model": {"checkpoint": "thought", "n_layers": 4, "n_latents": 6, "dtype": "float32", "device": "cpu"},
    "data": {
        "pairs_file": "pairs.json",
        "read": 43,
        "excluded": [{"pair_id": i, "reason": f"pair {i}: both answers are 13"} for i in (40, 41)],
        "failed": [{"pair_id": 42, "reason": "pair 42: its questions are of different length"}],
    },
    "config": {"seed": 7},
    "versions": {"nnsight": "0.8.1", "torch": "2.13.0"},
}


def test_every_metric_has_a_definition():
    measured = {*MEASURED, *STEP_METRICS, "logit_difference_estimate"}
    assert measured - set(METRICS) == set()


def test_only_metrics_of_the_table_are_defined():
    table = experiment(pairs=3).query("metric in ['logit_difference', 'answer_is_clean']")
    table.loc[table["metric"] == "answer_is_clean", "metric"] = "kl_to_clean_at_eot"
    found = dict(definitions(table, 0.5))
    assert set(found) & set(METRICS) == {"logit_difference", "kl_to_clean_at_eot"}
    assert found["kl_to_clean_at_eot"] == f"{METRICS['kl_to_clean_at_eot'].definition}."
    assert "a ceiling whose lower bound is at least 0.5" in found["critical"]


def test_the_methods_name_the_model_the_pairs_left_out_and_why_and_the_unit_of_the_statistics():
    text = " ".join(methods(MANIFEST, experiment(layers=(0.8, 0.3), size=2)))
    for words in (
        "thought (4 layers, 6 latent steps; float32 on cpu)",
        "43 pairs were read from pairs.json. 2 left out before the run (2: both answers are 13).",
        "1 failed in it (1: its questions are of different length).",
        "40 pairs in 20 clusters",
        "residual stream, whole thought; values from the pair's clean run, the pair's corrupted run, "
        "the run of an unrelated question of equal token count",
        "into the corrupted run (denoising) and the clean run (noising)",
        "jackknife-t over clusters",
        "40 pairs share 1 donors, each used for at most 40 pairs",
        "symmetric around 0 under the null",
        "sign flips of whole clusters",
        "nnsight 0.8.1, torch 2.13.0; seed 7",
    ):
        assert words in text


def test_extra_problems_are_in_the_methods():
    table = experiment(pairs=3)
    joined = MANIFEST | {"config": {"seed": 7, "extra_problems": 1200}}
    assert "1200 fresh word problems joined their questions" in " ".join(methods(joined, table))
    assert "fresh" not in " ".join(methods(MANIFEST, table))


def test_a_run_without_unrelated_donors_claims_no_p_values_and_cites_none():
    table = experiment(pairs=3).query("source != 'unrelated'")
    assert "no p-values" in " ".join(methods(MANIFEST, table))
    assert not any("p-values" in what for what, _ in citations(MANIFEST, table))
    assert any("Shapley 1953" in work for _, work in citations(MANIFEST | {"experiment": "shapley"}, table))

"""The whole experiment on a random tiny model: what it leaves, what it refuses, what stops it."""

import json

import pandas as pd
import pytest

from codi_tracing.analysis.io.table_file import read_table
from codi_tracing.analysis.report.write import write_report
from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.pairs.pair import load_pairs
from codi_tracing.patching.runs import experiment
from codi_tracing.patching.runs.checks import Check, check_checkpoint
from codi_tracing.patching.runs.experiment import InvariantError, run_experiment


def limited(config, limit):
    return config.model_copy(update={"pairs": config.pairs.model_copy(update={"limit": limit})})


@pytest.fixture
def config(run_config):
    return run_config


@pytest.fixture
def run(finished_report):
    return finished_report


def test_a_run_leaves_every_file_of_the_experiment(run):
    names = ["manifest.json", "cells.parquet", "checks.json", "report.html"]
    names += ["summary.json", "sites.csv", "prepared_pairs.json", "patching_results.json", "aggregate_statistics.json"]
    # A random model answers no pair, so that no layer's transfer is drawn.
    aggregates = ("kl_by_layer", "all_pairs_by_layer", "layer_similarity", "layer_curve_graded")
    names += [f"charts/aggregate/{name}.{kind}" for name in aggregates for kind in ("html", "png", "svg", "json")]
    names += [f"charts/individual/pair_{i}.{kind}" for i in range(6) for kind in ("png", "json")]
    assert [name for name in names if not (run / name).is_file()] == []


def test_the_table_holds_every_layer_in_both_directions_and_every_control(run):
    table = read_table(run / "cells.parquet")
    single = table[(table["kind"] == "resid") & (table["metric"] == "logit_difference")]
    for direction, other in (("denoising", "clean"), ("noising", "corrupted")):
        layers = single[(single["direction"] == direction) & (single["source"] == other)]
        assert sorted(layers["layer"].unique()) == [0, 1, 2]
        assert (layers.groupby("pair_id").size() == 3).all()
    thoughts = table[table["kind"] == "thought"]
    assert {"clean", "corrupted", "self"} <= set(thoughts["source"])
    assert table["metric"].nunique() == 12


def test_the_manifest_counts_what_was_read_used_and_excluded(run):
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["data"]["read"] == 12
    assert manifest["data"]["used"] == 6
    assert manifest["model"]["n_layers"] == 3
    assert manifest["model"]["lora_modules"] == {"expected": 21, "landed": 21}
    assert manifest["finished"]


def test_the_original_files_repeat_the_table(run):
    table = read_table(run / "cells.parquet")
    kl = table[(table["metric"] == "kl_from_corrupted") & (table["kind"] == "resid") & (table["source"] == "clean")]
    results = json.loads((run / "patching_results.json").read_text())
    assert len(results) == 6
    for pair in results:
        ours = kl[(kl["pair_id"] == str(pair["pair_id"])) & (kl["direction"] == "denoising")].set_index("layer")[
            "patched"
        ]
        assert [layer["kl_divergence"] for layer in pair["layer_results"]] == pytest.approx(ours.sort_index().tolist())
    means = json.loads((run / "aggregate_statistics.json").read_text())["layer_kl_means"]
    assert means["1"] == pytest.approx(kl[kl["layer"] == 1]["patched"].mean())


def test_the_same_run_again_gives_the_same_table(config, run, tmp_path):
    again = run_experiment(config, tmp_path / "again", progress=False)
    pd.testing.assert_frame_equal(read_table(run / "cells.parquet"), read_table(again / "cells.parquet"))


def test_a_finished_run_is_computed_again_only_with_fresh(config, tmp_path):
    small = limited(config, 2)
    folder = run_experiment(small, tmp_path / "run", progress=False)
    (folder / "note.txt").write_text("mine")
    run_experiment(small, folder, progress=False)
    assert (folder / "note.txt").exists()
    before = (folder / "manifest.json").stat().st_mtime_ns
    run_experiment(small, folder, fresh=True, progress=False)
    assert (folder / "manifest.json").stat().st_mtime_ns > before
    assert (folder / "note.txt").read_text() == "mine"


def test_an_interrupted_run_without_its_table_is_resumed(config, run, tmp_path):
    folder = run_experiment(limited(config, 2), tmp_path / "run", progress=False)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(
        json.dumps({key: manifest[key] for key in ("format", "identity")} | {"finished": False})
    )
    (folder / "cells.parquet").unlink()
    run_experiment(limited(config, 2), folder, progress=False)
    assert (folder / "cells.parquet").exists()


def test_another_runs_folder_is_replaced_only_with_fresh(config, run, tmp_path):
    other = limited(config, 2)
    with pytest.raises(ValueError, match="holds another run .* use --fresh to replace it"):
        run_experiment(other, run, progress=False)
    folder = run_experiment(limited(config, 3), tmp_path / "mine", progress=False)
    run_experiment(other, folder, fresh=True, progress=False)
    assert json.loads((folder / "manifest.json").read_text())["data"]["used"] == 2


def test_a_folder_that_is_no_run_is_never_replaced(config, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="holds files but is not a run folder"):
        run_experiment(config, tmp_path, fresh=True, progress=False)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_failed_invariant_stops_the_run_before_the_sweep_unless_forced(config, tmp_path, monkeypatch):
    broken = [Check("self_patch", "invariant", False, 1.0, "A self-patch changed a logit by 1.")]
    monkeypatch.setattr(experiment, "invariants", lambda *_: broken)
    with pytest.raises(InvariantError, match=r"A self-patch changed a logit by 1\. The run stopped before the sweep"):
        run_experiment(config, tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "checks.json").read_text())[0]["passed"] is False
    assert not (tmp_path / "run" / "cells.parquet").exists()
    run_experiment(config, tmp_path / "run", force=True, progress=False)
    assert (tmp_path / "run" / "cells.parquet").exists()


def test_every_invariant_holds_on_a_random_model(model, pairs):
    checks = check_checkpoint(model, pairs)
    invariants = [check for check in checks if check.grade == "invariant"]
    assert {check.name for check in invariants} == {
        "load_report",
        "unpatched_spread",
        "self_patch",
        "never_fed_site",
        "kl_not_negative",
    }
    assert all(check.passed for check in invariants)


def test_findings_say_that_a_random_model_cannot_answer(model, pairs):
    found = {check.name: check for check in check_checkpoint(model, pairs)}
    assert found["accuracy"].passed is False
    assert found["first_and_last_layer"].passed


def test_the_pairs_that_a_run_keeps_are_the_pairs_that_it_was_given(run, pairs):
    assert load_pairs(run / "prepared_pairs.json") == pairs[:6]


@pytest.mark.parametrize(
    ("changes", "sites"),
    [
        ({"grid": ["sitewise"], "kinds": ["mlp", "kv"], "sources": ["other", "unrelated"]}, 2 * 3 * 6),
        ({"grid": ["stepwise", "prefixes"], "kinds": ["latent"]}, 6 + 5),  # the prefix of one step is that step
        ({"grid": ["layerwise"], "kinds": ["head"], "freeze": ["R"]}, 3 * 4),
    ],
)
def test_a_config_names_grids_kinds_and_frozen_routes(config, tmp_path, changes, sites):
    chosen = RunConfig.model_validate({**limited(config, 2).model_dump(), **changes, "metrics": ["logit_difference"]})
    folder = run_experiment(chosen, tmp_path / "run", progress=False)
    table = read_table(folder / "cells.parquet")
    keys = ["kind", "layer", "layer_last", "step", "step_last", "head"]
    patched = table[(table["kind"] != "thought") & (table["source"] != "unrelated")]
    assert len(patched[keys].drop_duplicates()) == sites
    assert set(patched["freeze"].dropna()) == set(changes.get("freeze", []))
    assert table.loc[table["kind"] == "thought", "freeze"].isna().all()
    assert write_report(folder, figures=False).is_file()


def test_a_config_names_sources_and_means_are_over_all_usable_pairs(config, tmp_path):
    sources = ["zero", "mean", "noise"]
    two, six = (
        RunConfig.model_validate(
            {**limited(config, limit).model_dump(), "sources": sources, "metrics": ["logit_difference"]}
        )
        for limit in (2, 6)
    )
    few, many = (
        read_table(run_experiment(chosen, tmp_path / name, progress=False) / "cells.parquet")
        for name, chosen in (("two", two), ("six", six))
    )
    assert {*sources, "unrelated", "self"} <= set(few["source"])
    both = few.merge(many, on=[name for name in few.columns if name not in ("patched", "clean", "corrupted")])
    assert len(both) == len(few)
    assert (both["patched_x"] - both["patched_y"]).abs().max() < 1e-5


def test_a_grid_that_a_kind_lacks_is_refused(config, tmp_path):
    chosen = RunConfig.model_validate({**config.model_dump(), "kinds": ["latent"]})
    with pytest.raises(ValueError, match="grid 'layerwise' goes through layers, which kind 'latent' does not have"):
        run_experiment(chosen, tmp_path / "run", progress=False)


def test_the_invariants_hold_in_half_precision_too(random_checkpoint, pairs):
    from codi_tracing.traces.model.loading import load_codi

    checks = check_checkpoint(load_codi(random_checkpoint, device="cpu", dtype="bfloat16"), pairs)
    failed = [check.sentence for check in checks if check.grade == "invariant" and not check.passed]
    assert failed == []


def test_a_reinitialised_model_stands_beside_the_trained_one_and_changes_no_conclusion(config, tmp_path):
    from codi_tracing.analysis.statistics.verdict import verdict

    kept = {
        "sources": ["other", "unrelated"],
        "metrics": ["logit_difference", "answer_is_clean", "answer_is_corrupted"],
    }
    plain = RunConfig.model_validate({**limited(config, 3).model_dump(), **kept})
    beside = plain.model_copy(update={"reinitialised": True})
    alone, both = (
        read_table(run_experiment(c, tmp_path / str(i), progress=False) / "cells.parquet")
        for i, c in enumerate((plain, beside))
    )
    assert set(both["protocol"]) == {"latent_loop", "latent_loop_reinitialised"}
    blank = both[both["protocol"] == "latent_loop_reinitialised"]
    assert len(blank) == len(alone) == len(both) / 2
    assert verdict(both).sentence == verdict(alone).sentence
    write_report(tmp_path / "1", figures=False)

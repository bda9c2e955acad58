"""The two errors apart: KL by protocol and position read, means by hand, and a zero that stays visible."""

import pandas as pd
import pytest

from codi_tracing.analysis.experiments.original import original_chart, original_data, original_sentence
from codi_tracing.analysis.table import COLUMNS, check_table

# Mean KL by layer: the loop read at the number, and what the errors make of it.
LOOP = {"kl_from_corrupted": [0.5, 0.25, 0.125], "kl_from_corrupted_at_eot": [4e-6, 2e-6, 1e-6]}
PADS = {"kl_from_corrupted": [0.1, 0.2, 0.0], "kl_from_corrupted_at_eot": [1e-6, 2e-6, 0.0]}


def row(pair, layer, patched, metric="kl_from_corrupted", protocol="latent_loop", **more) -> dict:
    """One metric of a run that one layer of another run was written into, at all steps."""
    return dict.fromkeys(COLUMNS) | {
        "pair_id": str(pair), "cluster_id": str(pair), "protocol": protocol, "direction": "denoising",
        "source": "clean", "kind": "resid", "layer": layer, "layer_last": layer, "metric": metric, "patched": patched,
        "clean": 1.0, "corrupted": 0.0, **more,
    }  # fmt: skip


def table(rows) -> pd.DataFrame:
    return check_table(pd.DataFrame(rows))


def both(pairs=3, **more) -> list[dict]:
    """Every combination of protocol and position, each pair's KL half, once or one and a half times the mean."""
    return [
        row(pair, layer, kl * (0.5 + pair / 2), metric, protocol, **more)
        for protocol, kls in (("latent_loop", LOOP), ("single_pass", PADS))
        for metric, by_layer in kls.items()
        for layer, kl in enumerate(by_layer)
        for pair in range(pairs)
    ]


def value(found, protocol, read_at, layer, measure="KL(patched || corrupted)", written="other run"):
    wanted = {"protocol": protocol, "read_at": read_at, "layer": layer, "measure": measure, "written": written}
    rows = found[(found[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_a_kl_is_the_mean_over_pairs_and_is_not_divided_by_the_gap():
    rows = [line | {"clean": 40.0} for line in both(pairs=9)]
    found = value(original_data(table(rows)), "latent loop", "the answer's number", 0)
    assert found["value"] == pytest.approx(0.5 * (0.5 + 8 / 4))
    assert found["low"] < found["value"] < found["high"]
    assert (found["n"], found["clusters"]) == (9, 9)


def test_the_logit_difference_is_an_effect_pooled_over_pairs():
    gaps = [(0, 1.0, 4.0, 0.0), (1, 5.0, 6.0, 2.0)]  # pair, patched, clean, corrupted: (1 + 3) / (4 + 4)
    rows = [
        row(pair, 0, patched, "logit_difference", clean=clean, corrupted=corrupted)
        for pair, patched, clean, corrupted in gaps
    ]
    found = original_data(table([*both(), *rows]))
    effect = value(found, "latent loop", "the answer's number", 0, "effect on the logit difference")
    assert effect["value"] == pytest.approx(0.5)


def test_the_clean_host_is_left_out_because_it_differs_from_the_corrupted_run_unpatched():
    noising = both(direction="noising", source="corrupted")
    pd.testing.assert_frame_equal(original_data(table(both() + noising)), original_data(table(both())))


def test_unrelated_runs_are_kept_apart_and_their_draws_averaged():
    rows = [row(pair, 0, kl, source="unrelated", draw=draw) for pair in range(2) for draw, kl in enumerate([0.2, 0.4])]
    found = value(
        original_data(table(both() + rows)), "latent loop", "the answer's number", 0, written="unrelated donor"
    )
    assert (found["value"], found["n"]) == (pytest.approx(0.3), 2)


def test_windows_and_single_steps_are_left_out_and_the_table_is_not_changed():
    mixed = table([*both(), row(0, 0, 9.0, layer_last=2), row(0, 0, 9.0, step=1, step_last=1)])
    before = mixed.copy(deep=True)
    pd.testing.assert_frame_equal(original_data(mixed), original_data(table(both())))
    pd.testing.assert_frame_equal(mixed, before)


@pytest.mark.parametrize(("column", "lacking"), [("protocol", "single_pass"), ("metric", "kl_from_corrupted_at_eot")])
def test_a_table_without_one_of_the_four_combinations_says_which_and_what_to_run(column, lacking):
    rows = table([line for line in both() if line[column] != lacking])
    with pytest.raises(ValueError, match=f"{lacking}.*; run configs/original.toml"):
        original_data(rows)


def texts(spec) -> list[str]:
    """The text within the panels."""
    data = spec["datasets"].values()
    return [point["text"] for points in data for point in points if "text" in point]


def test_zero_is_drawn_a_decade_below_the_smallest_kl_and_named_as_structural():
    spec = original_chart(original_data(table(both()))).to_dict()
    drawn = [p["drawn_value"] for points in spec["datasets"].values() for p in points if p.get("value") == 0]
    assert set(drawn) == {-7.0}  # the smallest is 1e-6
    assert texts(spec) == ["structural zero: nothing reads it"] * 2
    assert "n = 3 pairs, 3 clusters (no intervals: 8 are needed)" in " ".join(spec["title"]["subtitle"])


def test_a_structural_zero_that_is_not_zero_is_shown_with_its_number():
    rows = [
        line | {"patched": 3e-7} if line["protocol"] == "single_pass" and line["layer"] == 2 else line
        for line in both()
    ]
    assert texts(original_chart(original_data(table(rows))).to_dict()) == ["structurally 0, measured 3.0e-07"] * 2


def test_a_kl_within_rounding_is_drawn_as_zero():
    rows = [*both(), row(0, 0, -2e-7, source="unrelated"), row(1, 0, 0.4, source="unrelated")]
    rows = [
        line | {"patched": 1e-7} if line["protocol"] == "single_pass" and line["layer"] == 2 else line for line in rows
    ]
    found = original_data(table(rows))
    assert set(found["rounding"]) == {2e-7}
    spec = original_chart(found).to_dict()
    assert texts(spec) == ["structural zero: nothing reads it"] * 2
    assert "0 within rounding (up to 2.0e-07)" in " ".join(spec["title"]["subtitle"])
    drawn = [p["drawn_value"] for points in spec["datasets"].values() for p in points if p.get("value") == 1e-7]
    assert set(drawn) == {-7.0}
    assert "Rounding moves a KL of this table by up to 2.0e-07." in original_sentence(found)


def test_both_positions_share_one_axis():
    first, second = original_chart(original_data(table(both()))).to_dict()["hconcat"]
    domains = [
        layer["encoding"]["y"]["scale"]["domain"]
        for panel in (first, second)
        for layer in panel["layer"]
        if "scale" in layer["encoding"]["y"]
    ]
    assert len(domains) > 1
    assert all(domain == domains[0] for domain in domains)


def test_a_sweep_that_changed_nothing_is_not_drawn():
    rows = [line | {"patched": 0.0} for line in both()]
    with pytest.raises(ValueError, match="every mean KL is 0"):
        original_chart(original_data(table(rows)))

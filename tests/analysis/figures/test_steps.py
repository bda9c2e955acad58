"""Effects by step, and their controls."""

import numpy as np
import pandas as pd
import pytest

from codi_tracing.analysis.figures.steps import UNTRAINED, steps_chart, steps_data
from codi_tracing.analysis.rows import OTHER_RUN, UNRELATED
from codi_tracing.analysis.table import check_table
from tests.support.charts import drawn, words
from tests.support.tables import as_transfer, cell

STEPS = 3


def steps(windows=("one", "prefix", "suffix"), frozen=(None, "R+K_T"), blank: bool = True) -> pd.DataFrame:
    """Whole steps whose effect is 0.1 per step written, 0.05 with frozen routes; half of it before training."""
    rng = np.random.default_rng(0)
    spans = {"one": [(k, k) for k in range(STEPS)], "prefix": [(0, k) for k in range(STEPS)],
             "suffix": [(k, STEPS - 1) for k in range(STEPS)]}  # fmt: skip
    places = list(dict.fromkeys(span for window in windows for span in spans[window]))
    rows = []
    for pair in range(20):
        clean, corrupted = rng.uniform(2, 6), -rng.uniform(2, 6)
        for protocol, part in (("latent_loop", 1.0), *([("latent_loop_reinitialised", 0.5)] if blank else [])):
            for first, last in places:
                for freeze in frozen:
                    for source in ("clean", "unrelated"):
                        moved = (
                            part * (last - first + 1) * (0.05 if freeze else 0.1) * (1 if source == "clean" else 0.5)
                        )
                        value = corrupted + moved * (clean - corrupted)
                        row = cell(pair, "denoising", source, "resid", "logit_difference", value, clean, corrupted)
                        rows.append(row | {"protocol": protocol, "freeze": freeze, "step": first, "step_last": last})
            whole = corrupted + 0.9 * (clean - corrupted)
            row = cell(pair, "denoising", "clean", "thought", "logit_difference", whole, clean, corrupted)
            rows.append(row | {"protocol": protocol})
    return as_transfer(check_table(pd.DataFrame(rows)))


def test_each_window_has_the_effect_of_its_steps():
    found = steps_data(steps()).set_index(["frozen", "donor", "window", "step"]).sort_index()
    effects = found["effect"]
    np.testing.assert_allclose(effects.loc[("none", OTHER_RUN, "one step")], [0.1, 0.1, 0.1])
    np.testing.assert_allclose(effects.loc[("none", OTHER_RUN, "prefix")], [0.1, 0.2, 0.3])
    np.testing.assert_allclose(effects.loc[("none", OTHER_RUN, "suffix")], [0.3, 0.2, 0.1])
    np.testing.assert_allclose(effects.loc[("R+K_T", OTHER_RUN, "prefix")], [0.05, 0.1, 0.15])
    np.testing.assert_allclose(effects.loc[("none", UNRELATED, "one step")], [0.05, 0.05, 0.05])
    np.testing.assert_allclose(effects.loc[("none", UNTRAINED, "one step")], [0.05, 0.05, 0.05])
    assert found.loc["none", "ceiling"].loc[OTHER_RUN].tolist() == pytest.approx([0.9] * 9)
    assert set(found["n"]) == {20}


def test_single_steps_alone_are_neither_prefixes_nor_suffixes():
    assert set(steps_data(steps(windows=("one",)))["window"]) == {"one step"}


def test_the_chart_has_a_row_for_each_frozen_set_and_a_column_for_each_window():
    spec = drawn(steps_chart(steps_data(steps())))
    titles = [[panel["title"]["text"] for panel in row["hconcat"]] for row in spec["vconcat"]]
    assert titles[0] == ["residual stream: step k alone", "residual stream: steps 0 to k",
                         "residual stream: steps k to the last"]  # fmt: skip
    assert titles[1][0] == "residual stream, R+K_T frozen: step k alone"
    assert "compare frozen routes" in words(spec)


def test_a_curve_of_single_steps_without_controls_says_so():
    said = words(drawn(steps_chart(steps_data(steps(windows=("one",), frozen=(None,), blank=False)))))
    assert "nothing in this table measures how much of the slope comes from that (configs/stepwise.toml does)" in said


def test_a_table_without_whole_steps_names_the_config_to_run():
    table = steps()
    with pytest.raises(ValueError, match="no rows of whole steps; run configs/stepwise.toml"):
        steps_data(table[table["kind"] == "thought"])


def test_an_untrained_model_has_a_slope_on_the_logit_difference_and_no_transfer():
    """Its runs prefer either answer by chance: gaps of both signs, which would cancel if they were summed."""
    table = steps()
    turned = table["protocol"].str.endswith("reinitialised") & (table["pair_id"].astype(int) % 2 == 0)
    runs = ["patched", "clean", "corrupted"]
    turned &= table["metric"].str.match("logit|probability")
    table.loc[turned, runs] = -table.loc[turned, runs]
    graded = steps_data(table, "logit_difference").set_index(["frozen", "donor", "window", "step"])["effect"]
    np.testing.assert_allclose(graded.sort_index().loc[("none", UNTRAINED, "prefix")], [0.05, 0.1, 0.15])
    assert UNTRAINED not in set(steps_data(table)["donor"])

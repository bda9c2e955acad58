"""No cell of an exported table is a formula."""

import pandas as pd

from codi_tracing.analysis.io.summary_files import without_formulas, write_summary


def test_text_that_begins_like_a_formula_gets_an_apostrophe_and_numbers_stay(tmp_path):
    texts = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "-12", "1e5", "plain", None]
    table = pd.DataFrame({"site": texts, "effect": [-0.5] * len(texts)})
    write_summary(tmp_path, {}, table)
    read = pd.read_csv(tmp_path / "sites.csv", dtype={"site": str}, keep_default_na=False)
    assert list(read["site"]) == [
        "'=cmd|' /C calc'!A0",
        "'+1+1",
        "'-2+3",
        "'@SUM(A1)",
        "'\t=1",
        "-12",
        "1e5",
        "plain",
        "",
    ]
    assert list(read["effect"]) == [-0.5] * len(texts)


def test_a_table_without_such_text_is_written_as_it_is():
    table = pd.DataFrame({"site": pd.Categorical(["a", "b"]), "p": [0.1, -3.0]})
    assert without_formulas(table).to_csv(index=False) == table.to_csv(index=False)

"""The report's linked view: its numbers are the table's, and in a browser without a network it follows clicks."""

import base64
import shutil

import numpy as np
import pandas as pd
import pytest

from codi_tracing.analysis.report.explorer import explorer_data
from codi_tracing.analysis.report.write import write_report
from codi_tracing.analysis.statistics.effects import by_site, effect, specific
from codi_tracing.analysis.statistics.measures import measured
from codi_tracing.analysis.statistics.results import Results
from codi_tracing.analysis.table import COLUMNS, check_table
from tests.support.run_folders import make_run, prepared
from tests.support.tables import as_transfer

ANSWERS = {"clean": 18.0, "corrupted": 13.0}


def swept(pairs: int, layers: int, steps: int, seed: int = 0, unrelated: bool = True) -> pd.DataFrame:
    """A simulated sweep of every layer × step and of whole thoughts, in both directions; layer 1 at step 2 moves most.

    The answer under a patch is the donor's where the logit difference has changed its sign, and 99 of an unrelated one.
    """
    rng = np.random.default_rng(seed)
    places = [("resid", layer, step) for layer in range(layers) for step in range(steps)] + [("thought", None, None)]
    grid = pd.DataFrame(places, columns=["kind", "layer", "step"]).astype({"layer": "Int64", "step": "Int64"})
    runs = pd.DataFrame({"pair_id": map(str, range(pairs)), "clean": rng.uniform(2, 6, pairs)})
    runs = runs.assign(cluster_id=runs["pair_id"], corrupted=-rng.uniform(2, 6, pairs))
    writes = pd.DataFrame(
        [("denoising", "clean"), ("noising", "corrupted"), ("denoising", "unrelated"), ("noising", "unrelated")],
        columns=["direction", "source"],
    )
    cells = runs.merge(writes.iloc[: 4 if unrelated else 2], how="cross").merge(grid, how="cross")
    largest = ((cells["layer"] == 1) & (cells["step"] == 2)).fillna(False) | (cells["kind"] == "thought")
    moved = np.where(cells["source"] == "unrelated", 0.2, np.where(largest, 0.9, 0.3)).astype(float)
    moved += 0.1 * rng.standard_normal(len(cells))
    denoising = cells["direction"] == "denoising"
    host = cells["corrupted"].where(denoising, cells["clean"])
    donor = cells["clean"].where(denoising, cells["corrupted"])
    read = cells.assign(metric="logit_difference", patched=host + moved * (donor - host))
    said = np.where(read["patched"] > 0, ANSWERS["clean"], ANSWERS["corrupted"])
    said = read.assign(metric="answer", patched=np.where(cells["source"] == "unrelated", 99.0, said), **ANSWERS)
    table = pd.concat([read, said], ignore_index=True).assign(protocol="latent_loop")
    table = table.assign(layer_last=table["layer"], step_last=table["step"])
    return as_transfer(check_table(table.reindex(columns=list(COLUMNS))))


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return swept(pairs=12, layers=3, steps=4)


@pytest.fixture(scope="module")
def found(table):
    return explorer_data(Results(table), prepared(12))


def numbers(text: str, kind: str, pairs: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind).reshape(-1, pairs)


def place_of(found, **wanted) -> int:
    return next(i for i, place in enumerate(found["places"]) if wanted.items() <= place.items())


def test_every_pairs_value_at_every_place_is_the_tables(table, found):
    place = place_of(found, direction="noising", panel="residual stream", layer="1", step="2")
    chosen = table.query("direction == 'noising' and layer == 1 and step == 2 and metric == 'probability_corrupted'")
    for name, source in (("other", "corrupted"), ("unrelated", "unrelated")):
        expected = chosen[chosen["source"] == source].set_index("pair_id")["patched"]
        own = numbers(found[name], "<f4", 12)[place]
        np.testing.assert_allclose(own, [expected[pair["id"]] for pair in found["pairs"]], rtol=1e-6)
    decoded = [found["answers"][i] for i in numbers(found["decoded"], "<u4", 12)[place]]
    said = table.query("direction == 'noising' and layer == 1 and step == 2 and metric == 'answer'")
    said = said[said["source"] == "corrupted"].set_index("pair_id")["patched"]
    assert decoded == [said[pair["id"]] for pair in found["pairs"]]


def test_a_decoded_answer_and_a_key_are_shown_with_every_digit(table):
    said = table["patched"].where((table["metric"] != "answer") | (table["patched"] != 18.0), 123456789.0)
    pairs = prepared(12)
    pairs[0]["clean"]["answer"] = 2.0107e-06
    found = explorer_data(Results(table.assign(patched=said)), pairs)
    assert 123456789.0 in found["answers"]
    assert found["pairs"][0]["clean"]["key"] == "0.0000020107"


def test_pooled_effects_are_those_of_the_heatmap(table, found):
    sites = by_site(specific(measured(table)))
    for place in found["places"]:
        own = sites[(sites["direction"] == place["direction"])]
        if place["panel"] == "whole thought":
            own = own[own["kind"] == "thought"]
        else:
            own = own[(own["layer"] == int(place["layer"])) & (own["step"] == int(place["step"]))]
        assert [place[name] for name in ("effect", "low", "high", "n")] == pytest.approx(
            own[["effect", "low", "high", "n"]].iloc[0].tolist()
        )


def test_without_an_unrelated_donor_effects_are_plain_and_have_no_p():
    table = swept(6, 2, 3, unrelated=False)
    found = explorer_data(Results(table), prepared(6))
    assert not any(place["specific"] for place in found["places"])
    assert all(place["p_fwer"] is None and not place["critical"] for place in found["places"])
    plain = by_site(effect(measured(table)), direction="denoising").set_index(["kind", "layer", "step"])["effect"]
    place = found["places"][place_of(found, direction="denoising", layer="1", step="2")]
    assert place["effect"] == pytest.approx(plain["resid", 1, 2])


def test_places_without_an_unrelated_donor_are_plain_though_the_whole_thought_has_one(table):
    without = table[(table["kind"] == "thought") | (table["source"] != "unrelated")]
    places = explorer_data(Results(without), prepared(12))["places"]
    assert {(place["panel"], place["specific"]) for place in places} == {
        ("residual stream", False),
        ("whole thought", True),
    }
    plain = by_site(effect(measured(table)), direction="denoising").set_index(["kind", "layer", "step"])["effect"]
    own = places[place_of({"places": places}, direction="denoising", layer="1", step="2")]
    assert own["effect"] == pytest.approx(plain["resid", 1, 2])


def test_a_table_that_exchanges_nothing_has_no_linked_view(table):
    assert explorer_data(Results(table[table["source"] == "unrelated"]), prepared(12)) is None


def test_kinds_of_sites_that_do_not_fit_the_page_are_named(table, monkeypatch):
    monkeypatch.setattr("codi_tracing.analysis.report.explorer.MOST_VALUES", 200)
    found = explorer_data(Results(table), prepared(12))
    assert found["left_out"] == ["residual stream"]
    assert {place["panel"] for place in found["places"]} == {"whole thought"}


@pytest.fixture(scope="module")
def browser():
    """Chromium without a network."""
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        opened = driver.chromium.launch(executable_path=chromium, args=options)
        yield opened
        opened.close()


@pytest.fixture
def shown(browser):
    """Opens a page; at the end it must have asked for nothing but itself, and have complained of nothing."""
    context = browser.new_context(offline=True, viewport={"width": 1100, "height": 1400}, accept_downloads=True)
    requested, complaints = [], []

    def show(path):
        page = context.new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_function("document.querySelector('#own svg text') && document.querySelector('#chosen').innerText")
        return page

    yield show
    context.close()
    assert complaints == []
    assert {url.partition(":")[0] for url in requested} <= {"file", "blob"}
    assert len([url for url in requested if url.startswith("file")]) == 1


@pytest.fixture(scope="module")
def report(table, tmp_path_factory):
    pairs = prepared(12)
    pairs[3]["clean"]["question"] = "<b>Three</b> geese?"
    return write_report(make_run(tmp_path_factory.mktemp("linked") / "run", table, pairs), figures=False)


def cell_at(page, chart: str, layer: int, step: int):
    """A heatmap's cell, as a reader of the screen finds it."""
    name = f"latent step: {step}; layer: {layer}"
    return page.locator(f'#{chart} path[aria-label^="{name};"]').first


def test_the_largest_effect_is_chosen_first(report, shown):
    page = shown(report)
    assert page.locator("#layer").input_value() == "1"
    assert page.locator("#step").input_value() == "2"
    assert "n = 12 pairs in 12 clusters" in page.locator("#chosen").inner_text()


def test_a_click_on_a_cell_changes_the_pairs_beside_it_and_the_table(report, shown):
    page = shown(report)
    before = page.locator("#strip").inner_html(), page.locator("#pairs tbody").inner_text()
    cell_at(page, "overview", 0, 3).click(position={"x": 4, "y": 4})
    page.wait_for_function("document.querySelector('#chosen').innerText.includes('layer 0, step 3')")
    page.wait_for_timeout(300)
    assert page.locator("#strip").inner_html() != before[0]
    assert page.locator("#pairs tbody").inner_text() != before[1]
    assert page.locator("#layer").input_value() == "0"
    assert page.locator("#step").input_value() == "3"


def test_a_chosen_pair_shows_its_questions_answers_and_own_heatmap(report, shown):
    page = shown(report)
    before = page.locator("#own").inner_html()
    page.locator("#pairs tbody button", has_text="3").click()
    page.wait_for_function("document.querySelector('#pair-name').innerText === 'Pair 3'")
    page.wait_for_timeout(300)
    assert page.locator("#clean-question").inner_text() == "<b>Three</b> geese?"
    assert "key 18; the unpatched run answers 18" in page.locator("#clean-answer").inner_text()
    assert page.locator("#patched-answer").inner_text().startswith(("18;", "13;"))
    assert page.locator("#own").inner_html() != before


def test_all_of_it_can_be_reached_and_changed_by_keyboard(report, shown):
    page = shown(report)
    page.locator("#direction").focus()
    reached = []
    for _ in range(40):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.dataset.sort || 'row'"))
        page.keyboard.press("Tab")
    wanted = ["direction", "panel", "layer", "step", "pair", "search", "save-places", "save-values", "effect", "row"]
    assert [name for name in wanted if name not in reached] == []
    page.locator("#step").focus()
    page.keyboard.press("ArrowUp")
    page.wait_for_function("document.querySelector('#chosen').innerText.includes('step 1')")


def test_the_table_of_pairs_can_be_searched_and_sorted(report, shown):
    page = shown(report)
    page.locator("#search").fill("geese")
    assert page.locator("#found").inner_text() == "1 of 12 pairs"
    page.locator("#search").fill("")
    page.locator('th button[data-sort="effect"]').click()
    effects = [float(text) for text in page.locator("#pairs tbody td:nth-child(6)").all_inner_texts()]
    assert effects == sorted(effects)
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("transfer")


def test_the_pairs_have_a_column_of_edits_only_if_they_are_known(table, report, shown, tmp_path):
    assert 'data-sort="edit"' not in report.read_text()
    edited = table.assign(edit=np.where(table["pair_id"] == "3", "later_operand", "first_operand"))
    path = write_report(make_run(tmp_path / "edited", edited, prepared(12)), figures=False)
    page = shown(path)
    page.locator("#search").fill("later operand")
    assert page.locator("#pairs tbody tr").all_inner_texts()[0].split("\t")[:2] == ["3", "later operand"]
    assert page.locator("#found").inner_text() == "1 of 12 pairs"


def test_the_page_is_no_wider_than_a_narrow_window(report, shown):
    page = shown(report)
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    heights = page.evaluate("[...document.querySelectorAll('td')].map(td => td.innerText.length / td.clientWidth)")
    assert max(heights) < 3  # no cell is a column of single letters


def test_what_is_saved_is_the_table(report, shown, table, tmp_path):
    page = shown(report)
    with page.expect_download() as saving:
        page.locator("#save-values").click()
    saving.value.save_as(tmp_path / "pairs.csv")
    saved = pd.read_csv(tmp_path / "pairs.csv", dtype={"pair_id": str, "layer": str, "step": str})
    assert len(saved) == 12 * 2 * (3 * 4 + 1)
    own = saved[(saved["direction"] == "denoising") & (saved["layer"] == "2") & (saved["step"] == "0")]
    swept_rows = table.query("direction == 'denoising' and layer == 2 and step == 0 and metric == 'probability_clean'")
    expected = swept_rows[swept_rows["source"] == "clean"].set_index("pair_id")["patched"]
    np.testing.assert_allclose(own.set_index("pair_id")["probability_patched"].loc[expected.index], expected, rtol=1e-6)


def test_a_thousand_pairs_of_sixteen_layers_and_six_steps_stay_under_ten_megabytes_and_work(shown, tmp_path):
    table = swept(pairs=1000, layers=16, steps=6)
    path = write_report(make_run(tmp_path / "large", table, prepared(1000)), figures=False)
    assert path.stat().st_size < 10e6
    page = shown(path)
    assert page.locator("#pairs tbody tr").count() == 1000
    cell_at(page, "overview", 9, 5).click(position={"x": 4, "y": 4})
    page.wait_for_function("document.querySelector('#chosen').innerText.includes('layer 9, step 5')")
    assert "n = 1000 pairs" in page.locator("#chosen").inner_text()

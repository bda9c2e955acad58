"""Texts from pairs, checkpoints and configs are data: none becomes markup, a script or a path."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
import vl_convert

from codi_tracing.analysis.report import explorer
from codi_tracing.analysis.report.catalogue import FIGURES
from codi_tracing.analysis.report.conclusions import conclusions
from codi_tracing.analysis.report.write import file_stems, write_report
from tests.support.run_folders import make_run
from tests.support.tables import cell, experiment

HOSTILE = (
    "</script><script>document.title='pwned'</script>",
    "<!--<script>",
    "]]><svg onload=document.title='pwned'>",
    "\"'><img src=x onerror=document.title='pwned'>",
    "a.b[0].c\\.d['e']",
    "datum.value; signal('x')",
    "${document.title='pwned'} {{7*7}} {signal: \"width\"}",
    "=1+1",
    "\u2028\u2029document.title='pwned'//",
    "javascript:document.title='pwned'",
    "../../../tmp/pwned",
    "/tmp/pwned",
    "a\0b",
    "a\nb\r\n",
    "-rf",
    "CON",
    "\u202egnp.exe",
    "\x1b[31m",
    "鸭" * 300,
    " ",
    "<b>",
    "a,b",
    "&lt;script&gt;",
    "__proto__",
    "constructor",
)
TAGS = {
    "html", "head", "meta", "title", "style", "body", "section", "h1", "h2", "p", "table", "thead", "tbody", "tr", "th",
    "details", "summary",
    "td", "div", "script", "h3", "label", "select", "input", "button", "dl", "dt", "dd", "span",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "name", "content", "http-equiv", "class", "id", "type", "tabindex", "aria-live", "data-sort",
}  # fmt: skip
OF_THE_LINKED_VIEW = {
    "direction", "panel", "layer", "step", "chosen", "overview", "strip", "own", "pair", "pair-name", "pairs",
    "clean-question", "clean-answer", "corrupted-question", "corrupted-answer", "patched-answer", "search", "found",
    "save-places", "save-values", "save-specs",
}  # fmt: skip


class Seen(HTMLParser):
    """The elements and attributes of a page, the text of its scripts, and its visible text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.attributes, self.ids, self.scripts, self.text = set(), set(), [], [], []
        self.comments, self._in = [], None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.ids += [value for name, value in attrs if name == "id"]
        self._in = tag
        if tag == "script":
            assert not attrs
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        if self._in == "script":
            self.scripts[-1] += data
        else:
            self.text.append(data)

    def handle_comment(self, data):
        self.comments.append(data)


def hostile_run(folder: Path, experiment_name: str = "sweep") -> Path:
    """A run whose every free text is hostile: ids, clusters, edits, protocol, donors, questions, answers, names."""
    count = len(HOSTILE)
    table = experiment(layers=(0.2, 0.9), pairs=count, noise=0.05)
    number = table["pair_id"].astype(int)
    text = number.map(lambda i: HOSTILE[i])
    table["cluster_id"] = text
    table["edit"] = number.map(lambda i: HOSTILE[i % 4])
    table["source_pair"] = text
    table["pair_id"] = text
    steps = pd.DataFrame(
        cell(text, direction, source, "resid", "logit_difference", 1.0, 4.0, -4.0, layer, text)
        | {"step": step, "step_last": step, "source_pair": "x", "freeze": None}
        for text in HOSTILE
        for direction, own in (("denoising", "clean"), ("noising", "corrupted"))
        for source in (own, "unrelated")
        for layer in (0, 1)
        for step in (0, 1)
    )
    steps = steps.assign(cluster_id=steps["pair_id"])
    edits = dict(zip(table["pair_id"], table["edit"], strict=True))
    steps["edit"] = steps["pair_id"].map(edits)
    table = pd.concat([table, steps], ignore_index=True)
    pairs = [
        {"pair_id": text, **{side: {"question": f"{text} 9?", "answer": i} for side in ("clean", "corrupted")}}
        for i, text in enumerate(HOSTILE)
    ]
    everything = dict(zip((f"k{text}" for text in HOSTILE), HOSTILE, strict=True))
    make_run(
        folder,
        table,
        pairs,
        name=" ".join(HOSTILE[:6]),
        experiment=experiment_name,
        created=HOSTILE[0],
        protocol=HOSTILE[1],
        config={"low_ceiling": 0.5, "checkpoint": HOSTILE[2]},
        model={"checkpoint": HOSTILE[3], "n_layers": HOSTILE[0], "n_latents": 6, "provenance": everything},
        data={
            "read": HOSTILE[0],
            "excluded": [{"pair_id": text, "reason": text} for text in HOSTILE],
            "without_unrelated_donor": list(HOSTILE),
        },
        versions=everything,
    )
    checks = [{"name": t, "grade": t, "passed": False, "value": 0, "sentence": t} for t in HOSTILE]
    (folder / "checks.json").write_text(json.dumps(checks))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A hostile run with its report; nothing is written beside it."""
    root = tmp_path_factory.mktemp("hostile")
    folder = hostile_run(root / "run")
    write_report(folder)
    assert [path.name for path in root.iterdir()] == ["run"]
    return folder


@pytest.fixture(scope="module")
def page(run):
    return Seen((run / "report.html").read_text(encoding="utf-8"))


def specs_of(page: Seen) -> dict:
    """The figures' specifications, out of the page's second script."""
    found = re.fullmatch(r"const specs = (.*);\nfor \(const .*", page.scripts[1], re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_a_page_has_only_the_elements_and_attributes_that_we_write(page):
    assert page.tags <= TAGS
    assert page.attributes <= ATTRIBUTES
    assert set(page.ids) <= set(FIGURES) | OF_THE_LINKED_VIEW
    assert page.comments == []


def test_a_page_has_three_scripts_vega_the_figures_as_json_and_the_explorer_with_its_data(page):
    assert len(page.scripts) == 3
    linked = Path(explorer.__file__).with_name("explorer.js").read_text(encoding="utf-8")
    assert page.scripts[2].startswith(linked)
    called = page.scripts[2].removeprefix(linked)
    assert "<" not in called
    data, _ = json.JSONDecoder().raw_decode(called.strip().removeprefix("explore("))
    assert {pair["id"] for pair in data["pairs"]} == set(HOSTILE)
    assert "<" not in page.scripts[1].split("\nfor (const")[0]
    specs = specs_of(page)
    assert {"corners", "layer_curve", "heatmap", "all_pairs_by_layer"} <= set(specs)
    rows = next(
        rows
        for rows in specs["all_pairs_by_layer"]["datasets"].values()
        if isinstance(rows, list) and "pair" in rows[0]
    )
    assert {row["pair"] for row in rows} == set(HOSTILE)


def test_every_hostile_text_is_shown_as_text(page):
    text = "".join(page.text)
    for hostile in HOSTILE:
        assert (
            hostile.strip().replace("\0", "\ufffd").replace("\r\n", "\n") in text.replace("\r\n", "\n")
            or "\0" in hostile
        )


def test_no_hostile_text_is_an_expression_a_field_or_a_signal(run):
    """Only data rows, titles and tooltips may hold them, nothing that Vega evaluates."""
    for path in (run / "charts").rglob("*.json"):
        spec = json.loads(path.read_text(encoding="utf-8"))
        for place, value in leaves(spec):
            if any(text.strip() and text in value for text in HOSTILE if len(text) > 5):
                assert {"datasets", "values", "text", "subtitle", "title", "domain", "sort"} & set(place), (
                    path.name,
                    place,
                )
                assert not {"signal", "expr", "test", "filter", "calculate", "field", "href", "url"} & set(place)


def leaves(value, place=()):
    """Every text of a specification with the keys that lead to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*place, key))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, place)
    elif isinstance(value, str):
        yield place, value


def test_every_chart_compiles_and_draws_no_link_and_no_script(run):
    for path in (run / "charts" / "aggregate").glob("*.json"):
        vl_convert.vegalite_to_vega(json.loads(path.read_text(encoding="utf-8")))
    for path in (run / "charts").rglob("*.svg"):
        for element in ElementTree.parse(path).iter():
            assert element.tag.rpartition("}")[2] not in {"script", "a", "image", "foreignObject", "use"}
            assert not [name for name in element.attrib if name.startswith("on") or name.endswith("href")]


def test_every_file_stays_in_the_run_folder_under_a_plain_name(run):
    for path in run.rglob("*"):
        assert not path.is_symlink()
        assert path.resolve().is_relative_to(run.resolve())
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}", path.name), path.name
    assert len(list((run / "charts" / "individual").glob("*.png"))) == len(HOSTILE)
    assert not Path("/tmp/pwned").exists()


def test_file_names_of_hostile_ids_are_plain_short_and_different():
    stems = file_stems([*HOSTILE, "a" * 300, "A" * 300, ".", "..", "pair_1", "1", "con", "nul.txt"])
    assert len({stem.lower() for stem in stems.values()}) == len(stems)
    assert all(re.fullmatch(r"pair_[A-Za-z0-9._-]{0,90}", stem) for stem in stems.values())


def test_the_terminal_prints_conclusions_of_a_hostile_run(run):
    assert list(conclusions(run))


@pytest.mark.parametrize(
    "name", ["../up", "/tmp/pwned", "a/b", "a\0b", "-rf", "", ".", "..", "a" * 101, "a b", "鸭", "a\n"]
)
def test_a_runs_name_is_no_path(tmp_path, name):
    from codi_tracing.configs.load import ConfigError, load_config
    from codi_tracing.configs.schema import RunConfig

    path = tmp_path / "config.toml"
    path.write_text(f'name = {json.dumps(name)}\ncheckpoint = "b"\npairs.file = "c"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="'name' is .*, expected"):
        load_config(path, RunConfig)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("name", ["report.html", "charts/aggregate/all_pairs_by_layer.html"])
def test_a_browser_draws_the_page_and_runs_no_hostile_script(run, name, tmp_path):
    shown = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         f"--user-data-dir={tmp_path}", "--virtual-time-budget=8000", "--dump-dom", (run / name).as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", shown, re.DOTALL)
    assert title is not None
    assert title[1].strip() != "pwned"
    assert "<svg" in shown  # the page's own scripts ran
    drawn = Seen(shown)
    assert not {"img", "iframe", "a", "object", "embed", "foreignobject"} & drawn.tags
    assert not [name for name in drawn.attributes if name.startswith("on") or name.endswith("href")]

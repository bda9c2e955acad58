"""Several processes draw the same figures as one process."""

import json
import os
import sys

import altair as alt
import pandas as pd
import pytest

from codi_tracing.analysis.io import png_worker
from codi_tracing.analysis.io.png_worker import Drawing, try_to_draw


@pytest.fixture
def specs(tmp_path):
    paths = []
    for number in range(20):
        chart = alt.Chart(pd.DataFrame({"x": [0, number], "y": [number, 1]}), title=f"figure {number}").mark_line()
        path = tmp_path / f"figure {number} ü.json"
        path.write_text(json.dumps(chart.encode(x="x", y="y").to_dict()), encoding="utf-8")
        paths.append(path)
    return paths


def test_several_processes_draw_what_one_draws(specs, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    drawn = [path.read_bytes() for path in Drawing(specs)]
    assert len(Drawing(specs)) == len(drawn) == 20
    for spec in specs:
        before = spec.with_suffix(".png").read_bytes()
        assert try_to_draw(spec) is None
        assert spec.with_suffix(".png").read_bytes() == before
    assert len({*drawn}) == 20


def test_a_process_that_dies_is_the_fault_of_its_figures(specs, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    (tmp_path / "dies").write_text(f"#!/bin/sh\nexec {sys.executable} -c 'raise SystemExit(1)'\n")
    (tmp_path / "dies").chmod(0o755)
    monkeypatch.setattr(png_worker.sys, "executable", str(tmp_path / "dies"))
    drawing = Drawing(specs)
    assert len(list(drawing)) == 20
    assert set(drawing.faults) == set(specs)
    assert {*drawing.faults.values()} == {"the process that draws it has ended"}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_figure_that_cannot_be_drawn_stops_no_other(specs, monkeypatch, processes):
    monkeypatch.setattr(os, "cpu_count", lambda: processes)
    specs[3].write_text("{")
    spec = json.loads(specs[7].read_text(encoding="utf-8"))
    specs[7].write_text(json.dumps({**spec, "width": 598_773}), encoding="utf-8")
    specs[11].unlink()
    drawing = Drawing(specs)
    list(drawing)
    assert set(drawing.faults) == {specs[3], specs[7], specs[11]}
    assert "pixels, more than 100,000,000" in drawing.faults[specs[7]]
    assert {path for path in specs if path.with_suffix(".png").is_file()} == set(specs) - set(drawing.faults)


def test_processes_import_from_where_this_one_does(specs, monkeypatch, tmp_path):
    """Packages may come from PYTHONPATH, a user's site or `sys.path` itself."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "vl_convert.py").write_text(
        'vegalite_to_svg = lambda spec: \'<svg class="a" width="1" height="1">\'\n'
        "svg_to_png = lambda svg, **options: b'from elsewhere'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    drawing = Drawing(specs)
    assert {path.read_bytes() for path in drawing} == {b"from elsewhere"}
    assert drawing.faults == {}

"""Several processes draw the same figures as one process."""

import json
import os
import sys

import altair as alt
import pandas as pd
import pytest

from codi_tracing.analysis.io import png_worker
from codi_tracing.analysis.io.png_worker import Drawing, draw


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
    for spec, picture in zip(sorted(specs), sorted(specs), strict=True):
        before = picture.with_suffix(".png").read_bytes()
        assert draw(spec).read_bytes() == before
    assert len({*drawn}) == 20


def test_a_process_that_dies_raises_an_error(specs, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    (tmp_path / "dies").write_text(f"#!/bin/sh\nexec {sys.executable} -c 'raise SystemExit(1)'\n")
    (tmp_path / "dies").chmod(0o755)
    monkeypatch.setattr(png_worker.sys, "executable", str(tmp_path / "dies"))
    with pytest.raises(RuntimeError, match=r"could not be drawn; see its process's error above"):
        list(Drawing(specs))

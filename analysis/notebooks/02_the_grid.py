# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. The grid
#
# In [1. One pair](01_one_pair.ipynb) we patched one vector of one pair by hand. Now all layers × steps, 66 pairs, both
# directions, with an unrelated donor beside each, and two models that answer equally well. The question is not which
# cell is the brightest, but first of all: **does the answer come through the thought at all?**

# %%
import os
from pathlib import Path

import altair as alt
import pandas as pd

import codi_tracing.analysis
from codi_tracing.analysis.figures.corners import corners_chart
from codi_tracing.analysis.figures.heatmap import heatmap_chart, heatmap_data
from codi_tracing.analysis.figures.pairs import pairs_chart, pairs_data
from codi_tracing.analysis.lens.charts import decodable_bars
from codi_tracing.analysis.lens.statistics import decodable
from codi_tracing.analysis.statistics.ceiling import ceiling
from codi_tracing.analysis.statistics.corners import corners, decomposition
from codi_tracing.analysis.statistics.effects import effect, pooled
from codi_tracing.analysis.statistics.ranking import rank_differences, winner
from codi_tracing.analysis.statistics.sites import critical
from codi_tracing.analysis.statistics.verdict import verdict
from codi_tracing.patching.engine.sweep import sweep
from codi_tracing.patching.interventions.sites import THOUGHT, sitewise
from codi_tracing.patching.interventions.sources import itself, other, unrelated
from codi_tracing.patching.lens.questions import questions_from_pairs
from codi_tracing.patching.lens.tables import lens_tables
from codi_tracing.patching.pairs.pair import load_pairs
from codi_tracing.traces.model.loading import load_codi

alt.renderers.enable("png")  # pictures that stay in the saved notebook
os.chdir(
    Path(codi_tracing.analysis.__file__).parents[1]
)  # paths are relative to the repository, wherever this notebook runs

# %% [markdown]
# ## One table for each model
#
# `thought` and `bypass` share a base, a task and (nearly) an accuracy: 100.0 % and 99.8 % on 1000 fresh problems. They
# were trained differently, see [their card](../../traces/embedded/README.md).
#
# The sites are each single layer × step (`resid`, the residual stream after a block) and the **whole thought**: the
# answer then reads another run's cache for all six steps and all layers. Each is written from the pair's other run,
# from an unrelated question's run of equal length, and from the run itself.

# %%
pairs = load_pairs("patching/data/arithmetic_pairs.json")
models = {name: load_codi(f"traces/embedded/{name}", device="cpu") for name in ("thought", "bypass")}
tables = {
    name: sweep(model, pairs, sites=[*sitewise(model), THOUGHT], sources=[other, unrelated, itself])
    for name, model in models.items()
}
for name, table in tables.items():
    runs = table[table["metric"] == "logit_difference"]
    print(f"{name}: {len(table)} rows, {len(runs)} patched runs of {runs['pair_id'].nunique()} pairs")

columns = ["pair_id", "direction", "source", "kind", "layer", "step", "metric", "patched", "clean", "corrupted"]
shown = tables["thought"].query("pair_id == '5' and source == 'clean' and metric == 'logit_difference' and layer == 3")
shown[columns].round(2)

# %% [markdown]
# A row is one patched run × one metric: what the metric is in the patched run, and in the pair's two unpatched ones.
# The table holds measurements only; effects, intervals and tests are computed from it, without a model.
#
# First the instrument: a run into which its own values are written must not change, whatever the model.

# %%
for name, table in tables.items():
    own = effect(table[(table["source"] == "self") & (table["metric"] == "logit_difference")])["numerator"]
    print(
        f"{name}: {len(own)} self-patches, each within 0.001 of the host's logit difference: {own.abs().max() < 1e-3}"
    )

# %% [markdown]
# ## The four corners
#
# A question and a thought can be combined freely: the clean question with the corrupted question's thought, and so on.
# Which answer comes out?

# %%
corners_chart(pd.concat([corners(table).assign(model=name) for name, table in tables.items()]))

# %% [markdown]
# With `thought`, the answer is the thought's: it follows it all the way, against the question. With `bypass` it is the
# question's. And an *unrelated* thought destroys the answer of both. So it would be wrong to say that `bypass` does not
# need its thought: it does, but what tells the two questions apart is read from the question.
#
# `verdict` puts this in words. Its numbers are *effects*, (patched − host) / (donor − host), pooled over pairs: 0
# leaves the host as it was, 1 makes it the donor. In square brackets: 95 % over resampled clusters (pairs that share a
# story).

# %%
for name, table in tables.items():
    found = verdict(table)
    print(f"{name}: {found.sentence}\n")

# %%
rows = [decomposition(table).assign(model=name) for name, table in tables.items()]
shares = pd.concat(rows).pivot(index=["part", "contrast"], columns="model", values="effect")
shares.round(2) + 0.0  # no minus in front of 0

# %% [markdown]
# The same as parts of the gap between the two runs: *indirect* goes through the thought, *direct* past it. (`xc` is the
# corrupted question with the clean thought.)
#
# ## The ceiling, and why the zero line is an unrelated donor
#
# The effect of the whole thought is a **ceiling**: no part of the thought can be expected to do more. Now compare it
# with what a stranger's thought "does":

# %%
exchanged = [
    table[(table["kind"] == "thought") & (table["source"] != "self") & (table["metric"] == "logit_difference")]
    for table in tables.values()
]
whole = pd.concat([effect(rows).assign(model=name) for name, rows in zip(tables, exchanged, strict=True)])
whole = pooled(whole, ["model", "direction", "source"])
whole.set_index(["model", "direction", "source"])[["effect", "low", "high", "n"]].round(2)

# %% [markdown]
# **Half the way, without knowing anything of the pair.** Where a write destroys the answer, both logits fall, and their
# difference ends up between the two runs. In `bypass`, the stranger even "recovers" more than the true donor. Whoever
# plots recovery without this control and sees 0.5 has seen destruction.
#
# Hence **specific effects**: what the pair's own other run does *beyond* the unrelated one. These are tested (by
# flipping signs of whole clusters), family-wise over all places.
#
# ## The grid

# %%
heatmap_chart(heatmap_data(tables["thought"]))

# %% [markdown]
# Read it with care:
#
# * The cross at layer 3, step 5 is structural. The last step's output is never fed back.
# * Effects grow with the step, because in these pairs the changed number enters the chain at different steps, and what
#   is written before it enters is the same in both runs. From this alone nothing follows about "the step at which the
#   model computes". (In other models the opposite slope is as trivial: an early step has more of the run after it.)
# * Single places overlap: a vector written at layer 0 is carried on into all layers above it. The effects do not add up
#   to the whole.
# * Pooled numbers hide pairs. Here is every pair at the largest place:

# %%
pairs_chart(pairs_data(tables["thought"]))

# %% [markdown]
# The true donor works all the way or not at all. Which of the two depends on the story: where it has two operations,
# the answer is complete before this place, and nothing that is written there is read.

# %%
here = pairs_data(tables["thought"]).query("donor == 'other run'")
operations = {str(pair.pair_id): len(pair.clean.chain) for pair in pairs}
(
    here.assign(operations=here["pair_id"].map(operations))
    .groupby("operations")["effect"]
    .describe()[["count", "min", "max"]]
    .round(2)
    + 0.0
)

# %% [markdown]
# So "0.69 on average" is nowhere 0.69.
#
# Which places are *critical*? Those with a specific effect that is told apart from zero, family-wise, and not
# negligible, in a model whose ceiling is not low.

# %%
ranked = critical(tables["thought"])
print(f"ceiling {ceiling(tables['thought'])}; {ranked['critical'].sum()} of {len(ranked)} places critical")
ranked[["rank", "layer", "step", "effect", "low", "high", "p_fwer", "critical", "rank_low", "rank_high"]].head(8).round(
    4
)

# %%
print(winner(rank_differences(tables["thought"])))

# %% [markdown]
# There is a first place, but no winner: ranks carry their uncertainty too (`rank_low`, `rank_high`).
#
# ## The same grid in `bypass`

# %%
heatmap_chart(heatmap_data(tables["bypass"]))

# %%
ranked = critical(tables["bypass"])
print(f"ceiling {ceiling(tables['bypass'])}; {ranked['critical'].sum()} of {len(ranked)} places critical")

# %% [markdown]
# Nowhere above 0: the unrelated donor moves the run more than the true one, since it destroys. The ceiling is low, so
# there is nothing here for a site to be critical *for*, and the library does not call one so, whatever its p.
#
# ## What the thoughts say
#
# Another look, and another question: read through the final norm and the LM head, which numbers does a latent *say*?
# `decodable` counts the questions whose intermediate results are among the five likeliest tokens of some latent, beside
# the same with *another* question's results: with few steps and small numbers, much is found by chance.

# %%
said = {}
for name in tables:
    values = lens_tables(load_codi(f"traces/embedded/{name}", device="cpu"), questions_from_pairs(pairs[:24])).values
    said[name] = decodable(values)
decodable_bars(said["thought"])

# %%
decodable_bars(said["bypass"])

# %% [markdown]
# `thought` says its results, as it was trained to; `bypass` says no more than chance, and yet solves the task. But to say
# is not to do: only the patches above tell what the answer depends on. The whole lens: `codi lens`.
#
# ## What one may conclude
#
# | from | one may say | one may not say |
# |---|---|---|
# | equal accuracy | both models solve the task | that they use their thoughts alike |
# | accuracy falls without latent steps | the thought is needed | that it carries the answer |
# | a high ceiling in both directions | the answer passes through the thought | that the thought *computes* it (see `configs/matched.toml`) |
# | a latent that says a result | the result is decodable there | that the answer depends on it |
# | an effect near 0.5 | nothing, before the unrelated donor is beside it | "half of it is stored here" |
# | a large specific effect at a place | writing there suffices | that it happens only there |
# | no effect at a place | writing there alone does not suffice | that the place is unused |
# | these two models | the instrument tells them apart | anything about CODI: `thought` was trained to have a high ceiling |
#
# The same from the command line, with a report: `codi run configs/sitewise.toml`, and two runs compared pair by pair:
# `codi compare`. Next: [3. Your own intervention](03_your_own_intervention.ipynb).

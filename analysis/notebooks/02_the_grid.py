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
# In [1. One pair](01_one_pair.ipynb) we patched one vector of one pair by hand. Now we patch all layers × steps of 66
# pairs, in both directions, with an unrelated donor as control, in two models of equal accuracy. The first question is
# not which cell is the brightest, but: **does the answer pass through the thought at all?**

# %%
import os
from pathlib import Path

import altair as alt
import pandas as pd

import codi_tracing as ct
import codi_tracing.analysis

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
# answer then reads another run's cache for all six steps and all layers. The written values come from the pair's other
# run, from an unrelated question of equal length, and from the run itself.

# %%
pairs = ct.load_pairs("arithmetic")
models = {name: ct.load_codi(name, device="cpu") for name in ("thought", "bypass")}
tables = {
    name: ct.sweep(model, pairs, sites=[*ct.sitewise(model), ct.THOUGHT], sources=[ct.other, ct.unrelated, ct.itself])
    for name, model in models.items()
}
for name, table in tables.items():
    runs = table[table["metric"] == "logit_difference"]
    print(f"{name}: {len(table)} rows, {len(runs)} patched runs of {runs['pair_id'].nunique()} pairs")

columns = ["pair_id", "direction", "source", "kind", "layer", "step", "metric", "patched", "clean", "corrupted"]
shown = tables["thought"].query("pair_id == '5' and source == 'clean' and metric == 'logit_difference' and layer == 3")
shown[columns].round(2)

# %% [markdown]
# A row is one patched run × one metric: the metric in the patched run and in the pair's two unpatched runs. The table
# holds measurements only; effects, intervals and tests are computed from it, without a model.
#
# First the instrument: a run patched with its own values must not change, in any model.

# %%
for name, table in tables.items():
    own = ct.effect(table[(table["source"] == "self") & (table["metric"] == "logit_difference")])["numerator"]
    print(
        f"{name}: {len(own)} self-patches, each within 0.001 of the host's logit difference: {own.abs().max() < 1e-3}"
    )

# %% [markdown]
# ## The four corners
#
# A question and a thought can be combined freely: the clean question with the corrupted question's thought, and so on.
# What does the model answer?

# %%
ct.corners_chart(pd.concat([ct.corners(table).assign(model=name) for name, table in tables.items()]))

# %% [markdown]
# In `thought`, the answer follows the thought, against the question. In `bypass` it follows the question. An
# *unrelated* thought destroys the answer of both models. So `bypass` needs its thought too, but it reads the difference
# between the two questions from the question.
#
# `verdict` states this in words. Its numbers are *effects*, (patched − host) / (donor − host), pooled over pairs: 0
# leaves the host unchanged, 1 makes it the donor. In square brackets: 95 % intervals over resampled clusters (pairs
# that share a story).

# %%
for name, table in tables.items():
    found = ct.verdict(table)
    print(f"{name}: {found.sentence}\n")

# %%
rows = [ct.decomposition(table).assign(model=name) for name, table in tables.items()]
shares = pd.concat(rows).pivot(index=["part", "contrast"], columns="model", values="effect")
shares.round(2) + 0.0  # no −0

# %% [markdown]
# The same as parts of the gap between the two runs: *indirect* goes through the thought, *direct* past it. (`xc` is the
# corrupted question with the clean thought.)
#
# ## The ceiling, and why the zero line is an unrelated donor
#
# The effect of the whole thought is a **ceiling**: no part of the thought can be expected to have a larger one. Compare
# it with the "effect" of an unrelated thought:

# %%
exchanged = [
    table[(table["kind"] == "thought") & (table["source"] != "self") & (table["metric"] == "logit_difference")]
    for table in tables.values()
]
whole = pd.concat([ct.effect(rows).assign(model=name) for name, rows in zip(tables, exchanged, strict=True)])
whole = ct.pooled(whole, ["model", "direction", "source"])
whole.set_index(["model", "direction", "source"])[["effect", "low", "high", "n"]].round(2)

# %% [markdown]
# **About half-way, without any information about the pair.** If a write destroys the answer, both logits fall, and
# their difference ends up between the two runs. In `bypass`, the unrelated thought even "recovers" more than the true
# donor. Without this control, a recovery of 0.5 may be nothing but destruction.
#
# Hence **specific effects**: the effect of the pair's other run *minus* that of the unrelated run. They are tested by
# flipping signs of whole clusters, family-wise over all sites.
#
# ## The grid

# %%
ct.heatmap(tables["thought"])

# %% [markdown]
# Read it with care:
#
# * The cross at layer 3, step 5 is structural: the last step's output is never fed back.
# * Effects grow with the step because the changed number enters the chain at different steps, and before that both runs
#   hold the same values. This says nothing about "the step at which the model computes". (In other models the opposite
#   slope is equally trivial: an early step has more of the run after it.)
# * Sites overlap: a vector written at layer 0 passes into all layers above it. The effects do not add up to the whole.
# * Pooled numbers hide pairs. Here is every pair at the site of the largest effect:

# %%
ct.pairs_chart(ct.pairs_data(tables["thought"]))

# %% [markdown]
# The true donor has a full effect or none, depending on the story: with two operations the answer is complete before
# this site, and the model does not read what is written there.

# %%
here = ct.pairs_data(tables["thought"]).query("donor == 'other run'")
operations = {str(pair.pair_id): len(pair.clean.chain) for pair in pairs}
(
    here.assign(operations=here["pair_id"].map(operations))
    .groupby("operations")["effect"]
    .describe()[["count", "min", "max"]]
    .round(2)
    + 0.0
)

# %% [markdown]
# So the average of 0.69 describes no single pair.
#
# Which sites are *critical*? Those whose specific effect differs from zero, family-wise, and is not negligible, in a
# model whose ceiling is not low.

# %%
ranked = ct.critical(tables["thought"])
print(f"ceiling {ct.ceiling(tables['thought'])}; {ranked['critical'].sum()} of {len(ranked)} sites critical")
ranked[["rank", "layer", "step", "effect", "low", "high", "p_fwer", "critical", "rank_low", "rank_high"]].head(8).round(
    4
)

# %%
print(ct.winner(ct.rank_differences(tables["thought"])))

# %% [markdown]
# There is a largest estimate, but no winner: ranks are uncertain too (`rank_low`, `rank_high`).
#
# ## The same grid in `bypass`

# %%
ct.heatmap(tables["bypass"])

# %%
ranked = ct.critical(tables["bypass"])
print(f"ceiling {ct.ceiling(tables['bypass'])}; {ranked['critical'].sum()} of {len(ranked)} sites critical")

# %% [markdown]
# No effect is above 0: the unrelated donor moves the run more than the true one, because it destroys the answer. The
# ceiling is low, so no site is called critical, whatever its p.
#
# ## Decoding the thoughts
#
# A different question: which numbers does a latent *decode to*, through the final norm and the LM head? `decodable`
# counts the questions whose intermediate results are among the five likeliest tokens of some latent, and as chance
# level the same with *another* question's results: with few steps and small numbers, chance is high.

# %%
shares = {}
for name in tables:
    values = ct.lens_tables(models[name], ct.questions_from_pairs(pairs[:24])).values
    shares[name] = ct.decodable(values)
ct.decodable_bars(shares["thought"])

# %%
ct.decodable_bars(shares["bypass"])

# %% [markdown]
# The latents of `thought` decode to its results, as trained; those of `bypass` do so no more often than chance,
# although it solves the task. Decodable does not mean used: only the patches above show what the answer depends on. The
# whole lens: `codi lens`.
#
# ## Conclusions
#
# | from | supported | not supported |
# |---|---|---|
# | equal accuracy | both models solve the task | that they use their thoughts in the same way |
# | accuracy falls without latent steps | the thought is needed | that it carries the answer |
# | a high ceiling in both directions | the answer passes through the thought | that the thought *computes* it (see `configs/matched.toml`) |
# | a latent that decodes to a result | the result is decodable there | that the answer depends on it |
# | an effect near 0.5 | nothing without the unrelated donor | "half of it is stored here" |
# | a large specific effect at a site | writing there is enough | that it happens only there |
# | no effect at a site | writing there alone is not enough | that the site is unused |
# | these two models | the instrument distinguishes them | anything about CODI: `thought` was trained to have a high ceiling |
#
# The same from the command line, with a report: `codi run configs/sitewise.toml`, and two runs compared pair by pair:
# `codi compare`. Next: [3. Your own intervention](03_your_own_intervention.ipynb).

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
# not which cell is the brightest, but: **does the answer follow the thought at all?**

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
# holds measurements only; transfer, intervals and tests are computed from it, without a model.
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
# `verdict` states this in words. Its numbers are *transfer*: how much of the probability of the partner's whole answer
# the write brings, (patched − host) / (partner − host), pooled over the pairs that both runs answer correctly; specific
# transfer is less what an unrelated question's thought brings. In square brackets: 95 % intervals over clusters (pairs
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
# The same as parts of the gap between the two runs' probabilities of the clean answer: *indirect* goes through the
# thought, *direct* past it. (`xc` is the corrupted question with the clean thought.)
#
# ## The ceiling, and why the headline is not the logit difference
#
# The transfer of the whole thought is a **ceiling**: no part of the thought can be expected to carry more. Compare it
# with that of an unrelated thought, on both scales:

# %%
parts = []
for metric in ("transfer", "logit_difference"):
    for name, table in tables.items():
        rows = ct.measured(table, metric).query("kind == 'thought' and source != 'self'")
        parts.append(ct.pooled(ct.effect(rows), ["direction", "source"]).assign(model=name, metric=metric))
whole = pd.concat(parts).pivot(index=["model", "direction", "source"], columns="metric", values="effect")
whole.round(2) + 0.0

# %% [markdown]
# On the logit difference an unrelated thought moves the run **about half-way, without any information about the pair**:
# if a write destroys the answer, both logits fall, and their difference ends up between the two runs. Its transfer is
# (nearly) 0, since it does not bring the partner's answer. So sites are measured by transfer, less the unrelated
# donor's, and tested by flipping signs of whole clusters, family-wise over all sites. The logit difference stays as a
# graded view for small effects, always beside its control and never corrected by it.
#
# ## The grid

# %%
ct.heatmap(tables["thought"])

# %% [markdown]
# Read it with care:
#
# * The cross at layer 3, step 5 is structural: the last step's output is never fed back.
# * Transfer grows with the step because the changed number enters the chain at different steps, and before that both runs
#   hold the same values. This says nothing about "the step at which the model computes". (In other models the opposite
#   slope is equally trivial: an early step has more of the run after it.)
# * Sites overlap: a vector written at layer 0 passes into all layers above it. The numbers do not add up to the whole.
# * Pooled numbers hide pairs. Here is every pair at the site of the largest transfer:

# %%
ct.pairs_chart(ct.pairs_data(tables["thought"]))

# %% [markdown]
# The other run's write brings its answer or nothing, depending on the story: with two operations the answer is complete before
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
# So the average of about 0.7 describes no single pair: it is the share of pairs whose answer is carried here.
#
# Which sites are *critical*? Those whose specific transfer is above zero, family-wise, and not negligible, in a model
# whose ceiling is not low.

# %%
results = {name: ct.Results(table) for name, table in tables.items()}
print(results["thought"].critical_sentence)
columns = ["layer", "step", "effect", "low", "high", "partner", "host", "another", "p_fwer", "rank_low", "rank_high"]
results["thought"].sites()[columns].head(8).round(3)

# %%
print(results["thought"].largest.sentence)

# %% [markdown]
# There is a largest estimate, but no largest site: ranks are uncertain too (`rank_low` to `rank_high`, for all sites at
# once).
#
# ## The same grid in `bypass`

# %%
ct.heatmap(tables["bypass"])

# %%
print(results["bypass"].critical_sentence)
print(results["bypass"].largest.sentence)

# %% [markdown]
# Nothing is transferred anywhere. The ceiling is low, so no site is called critical, and none the largest.
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
# | a high ceiling in both directions | the answer follows the thought | that the thought *computes* it (see `configs/matched.toml`) |
# | a latent that decodes to a result | the result is decodable there | that the answer depends on it |
# | an effect of 0.5 on the logit difference | nothing without the unrelated donor | "half of it is stored here" |
# | a transfer of 0.5 | the answer is carried in half of the pairs | that each pair has half of it there |
# | a large specific transfer at a site | writing there is enough | that it happens only there |
# | no transfer at a site | writing there alone is not enough | that the site is unused |
# | these two models | the instrument distinguishes them | anything about CODI: `thought` was trained to have a high ceiling |
#
# The same from the command line, with a report: `codi run configs/sitewise.toml`, and two runs compared pair by pair:
# `codi compare`. Next: [3. Your own intervention](03_your_own_intervention.ipynb).

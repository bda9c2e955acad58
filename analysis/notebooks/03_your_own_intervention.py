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
# # 3. Your own intervention
#
# Three extensions that need no change of the library:
#
# 1. a **function inside the trace**: any PyTorch code at a block of a latent step;
# 2. a **metric**: a function from logits to a number, with controls, intervals and heatmaps like any other;
# 3. a **source**: a function that computes the values that a sweep writes.
#
# Each is checked against a shipped counterpart or an identity. A new intervention that agrees with nothing known is a
# bug until proven otherwise.

# %%
import os
from pathlib import Path

import altair as alt
import pandas as pd
import torch

import codi_tracing as ct
import codi_tracing.analysis
from codi_tracing.analysis.figures.style import BLUE, GREY, dress, heading
from codi_tracing.traces.text import last_number

alt.renderers.enable("png")  # pictures that stay in the saved notebook
os.chdir(
    Path(codi_tracing.analysis.__file__).parents[1]
)  # paths are relative to the repository, wherever this notebook runs

model = ct.load_codi("thought", device="cpu")
pairs = ct.load_pairs("arithmetic")
questions = [pair.clean.question for pair in pairs]
keys = [pair.clean.answer for pair in pairs]

# %% [markdown]
# ## 1. A function inside the trace
#
# `record(model, questions, edits=[...])` calls your function at every block of every latent step, in forward order, in
# the nnsight trace of that step. There, `block` is an envoy: its `.output`, and the inputs and outputs of its modules,
# can be read, saved and written. Questions are rows: `block.output[:, 0]` is `[question, d_model]`. For the other
# kinds of site, `model.activation(block, kind)` is a block's `head`, `attn`, `mlp` or `resid`, in Llama and in GPT-2.
#
# **Reading.** Values saved inside a trace are available after it:

# %%
norms = {}


def size_of_mlp(block, layer, step):
    """The norm of the MLP's output, of all questions."""
    norms[layer, step] = model.activation(block, "mlp")[:, 0].norm(dim=-1).save()


ct.record(model, questions, edits=[size_of_mlp])
sizes = pd.Series({site: float(size.mean()) for site, size in norms.items()})
sizes.rename_axis(["layer", "step"]).unstack("step").round(1)

# %% [markdown]
# **Writing.** Zero the MLP's output at one site, and count how many of the 66 questions are still answered correctly.


# %%
def zero_mlp(at):
    """An edit that zeroes the MLP's output at one (layer, step)."""

    def edit(block, layer, step):
        if (layer, step) == at:
            model.activation(block, "mlp")[:, 0] = 0.0

    return edit


def accuracy(edits=()):
    """The share of questions whose answer is the key."""
    answers = ct.record(model, questions, edits=edits).answers
    return sum(last_number(text) == key for text, key in zip(answers, keys, strict=True)) / len(keys)


sites = [(layer, step) for layer in range(model.n_layers) for step in range(model.n_latents)]
mine = pd.Series({site: accuracy([zero_mlp(site)]) for site in sites}).rename_axis(["layer", "step"])
print(f"unpatched: {accuracy():.0%}")
mine.unstack("step").map("{:.0%}".format)

# %% [markdown]
# The library has this intervention: source `zero` at the kind of site `mlp`. Writing into the clean run is the
# direction *noising*.

# %%
shipped = ct.sweep(
    model,
    pairs,
    sites=ct.sitewise(model, "mlp"),
    sources=[ct.zero],
    directions=["noising"],
    metrics=["answer_is_clean"],
)
theirs = shipped.groupby(["layer", "step"])["patched"].mean()
print(f"the same number at all {len(mine)} sites: {(mine - theirs).abs().max() == 0}")

# %% [markdown]
# **Beyond the options.** How much noise does a step tolerate? We add a random vector to the residual stream after all
# blocks of one step, with a norm that is a multiple of the residual stream's. Without noise nothing may change: that is
# the identity here. The directions are drawn once from a seed, so that all sizes have the same direction.

# %%
noise = torch.randn(model.n_layers, len(questions), model.d_model, generator=torch.Generator().manual_seed(0))
noise = noise / noise.norm(dim=-1, keepdim=True)


def push(at, size):
    """An edit that adds noise at one step, with `size` times the norm of the residual stream."""

    def edit(block, layer, step):
        if step == at:
            value = block.output[:, 0]
            block.output[:, 0] = value + size * value.norm(dim=-1, keepdim=True) * noise[layer]

    return edit


doses = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
tolerated = pd.DataFrame(
    [(step, size, accuracy([push(step, size)])) for step in range(model.n_latents) for size in doses],
    columns=["step", "size", "accuracy"],
)
print(f"without noise, all as unpatched: {(tolerated.query('size == 0')['accuracy'] == accuracy()).all()}")

lines = alt.Chart(tolerated).encode(
    x=alt.X("size:Q", title="noise, in norms of the residual stream"),
    y=alt.Y("accuracy:Q", title="accuracy", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
    color=alt.Color("step:O", title="latent step", scale=alt.Scale(scheme="viridis")),
)
dress(
    (lines.mark_line() + lines.mark_point(filled=True, size=40)).properties(width=330, height=200),
    heading(
        "Noise in one latent step, all layers",
        f"Accuracy on the clean questions, n = {len(questions)}; one draw of directions",
        width=420,
    ),
)

# %% [markdown]
# Such curves differ by step partly because different amounts of the run come after a step. A function can also save
# (`kept.append(block.output[:, 0].clone().save())`; clone a value before you edit it), and several functions can be
# given at once.
#
# Two rules avoid most problems with traces: use modules **in forward order** (a block's attention before its MLP before
# its output), and keep everything else, such as tables and prints, outside the trace.
#
# ## 2. A metric of your own
#
# A metric maps the logits at the answer's first differing token to one number for each pair and cell; it never
# averages. The pair's two unpatched runs go through the same function, so every row of the table has its references.


# %%
def log_odds(r):
    """Log-probability of the clean answer's token minus that of the corrupted answer's, in nats."""
    clean, corrupted = (
        r.log_probs.gather(-1, token.expand(*r.patched.shape[:-1], 1))[..., 0]
        for token in (r.clean_token, r.corrupted_token)
    )
    return clean - corrupted


def margin(r):
    """Logit of the clean answer's token minus the largest other logit: above 0 if the clean token is first."""
    token = r.clean_token.expand(*r.patched.shape[:-1], 1)
    rivals = r.patched.scatter(-1, token, -torch.inf)
    return r.patched.gather(-1, token)[..., 0] - rivals.amax(-1)


table = ct.sweep(
    model,
    pairs,
    sites=ct.sitewise(model),
    sources=[ct.other, ct.unrelated],
    metrics=[ct.logit_difference, log_odds, margin, "answer_is_clean"],
)
runs = [name for name in table.columns if name not in ("metric", "patched", "clean", "corrupted")]
wide = table.pivot(index=runs, columns="metric", values="patched")
print(f"log odds are the logit difference: {(wide['log_odds'] - wide['logit_difference']).abs().max() < 1e-3}")
agree = (wide["margin"] > 0) == (wide["answer_is_clean"] == 1)
print(f"a margin above 0 and the clean answer decoded go together in {agree.mean():.1%} of {len(wide)} runs")

# %% [markdown]
# The first is an identity: softmax subtracts the same number from both. The second is nearly one, because in this
# vocabulary an answer is one token; but greedy decoding starts earlier, right after EoT, so a disturbed run may also
# deviate from the answer prefix.
#
# A metric has to be read with its direction. Here are both at one site:

# %%
rows = ct.effect(table[table["metric"].isin(["logit_difference", "margin"])])
at = ct.pooled(rows[(rows["layer"] == 3) & (rows["step"] == 4)], ["direction", "metric", "source"])
at.set_index(["direction", "metric", "source"])[["effect", "low", "high", "n"]].round(2)

# %% [markdown]
# In *denoising*, destroying the answer does not raise the margin of the clean one, so the unrelated donor stays near 0,
# while the logit difference moves part of the way. But in *noising*, the margin falls whenever the clean answer loses
# to any other: there the unrelated donor has as large an effect as the true one.
#
# And its chart:

# %%
ct.heatmap(table, "margin")

# %% [markdown]
# ## 3. A source of your own
#
# A source that is a *run* is a function from the host to the donor, such as `other` and `unrelated`. A *value* is
# computed: `Value(name, function)`, where the function receives the present values (`own`, `host`), those of the other
# run (`other`), means and seeded noise, each `[pair, width]`.
#
# First the identities: a source that returns the present value changes nothing, and one that returns the other run's
# value equals the shipped `other`.

# %%
site = ct.Site("resid", 3, 3)  # layer 3, at all steps
stay = ct.Value("stay", lambda v: v.own)
copied = ct.Value("copied", lambda v: v.other)
found = ct.effect(
    ct.sweep(
        model,
        pairs,
        sites=[site],
        sources=[ct.other, stay, copied],
        directions=["denoising"],
        metrics=[ct.logit_difference],
    )
)
by_source = found.pivot(index="pair_id", columns="source", values="effect")
far = (by_source["copied"] - by_source["clean"]).abs().max()
print(f"the present value, written: effects within 1e-3 of 0: {by_source['stay'].abs().max() < 1e-3}")
print(f"the other run's, computed:   as copied within 1e-3: {far < 1e-3}")

# %% [markdown]
# Now a question: **in how many directions of layer 3 does the difference lie?** We compute the principal directions of
# (clean − corrupted) on one half of the pairs. On the other half we write only the part of the difference in the first
# k of them: `host + (other − host) P`. With k = 64 = d_model this is the other run; with k = 0 the host. The control is
# k random directions: many random directions also suffice.

# %%
half = len(pairs) // 2
seen, unseen = pairs[:half], pairs[half:]
assert not {pair.cluster_id for pair in seen} & {pair.cluster_id for pair in unseen}

of_clean, of_corrupted = (
    ct.record(model, [getattr(pair, side).question for pair in seen]).resid[:, site.layer]
    for side in ("clean", "corrupted")
)
differences = (of_clean - of_corrupted).flatten(0, 1)  # [pair × step, d_model]
principal = torch.linalg.svd(differences, full_matrices=True).Vh.T  # the directions, largest first, as columns
chance = torch.linalg.qr(torch.randn(model.d_model, model.d_model, generator=torch.Generator().manual_seed(0))).Q


def within(directions, name):
    """The other run's value in these directions, the host's in all others."""
    projection = directions @ directions.T
    return ct.Value(name, lambda v: v.host + (v.other - v.host) @ projection)


ranks = (0, 1, 2, 4, 8, 16, 24, 32, 48, 64)
sources = [
    within(basis[:, :rank], f"{name} {rank}")
    for name, basis in (("principal", principal), ("random", chance))
    for rank in ranks
]
table = ct.sweep(
    model,
    unseen,
    sites=[site],
    sources=[*sources, ct.other],
    metrics=[ct.logit_difference, "answer_is_clean"],
    directions=["denoising"],
)
parts = ct.pooled(ct.effect(table[table["metric"] == "logit_difference"]), ["protocol", "source"])
parts = parts[parts["source"] != "clean"]
parts[["directions", "k"]] = parts["source"].str.split(" ", expand=True)
parts["k"] = parts["k"].astype(int)

base = alt.Chart(parts).encode(
    x=alt.X("k:Q", title="k, directions exchanged", axis=alt.Axis(values=[0, 8, 16, 32, 48, 64], labelOverlap=False)),
    color=alt.Color(
        "directions:N", title="directions", scale=alt.Scale(domain=["principal", "random"], range=[BLUE, GREY])
    ),
)
band = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title="effect (0 host, 1 donor)"), y2="high:Q")
curve = base.mark_line() + base.mark_point(filled=True, size=40)
dress(
    (band + curve.encode(y=alt.Y("effect:Q"))).properties(width=330, height=200),
    heading(
        "Part of the difference in k directions of layer 3, all steps",
        "Written: clean values into the corrupted run, only in k directions",
        "On logit difference, pooled; bands: 95% over clusters",
        f"n = {parts['n'].max()} pairs, {parts['clusters'].max()} clusters, none used to compute the directions",
        width=420,
    ),
)

# %%
whole = parts.set_index(["directions", "k"])["effect"]
print(f"k = 0 leaves the host: {(whole.xs(0, level='k').abs() < 1e-3).all()}")
print(f"k = {model.d_model} is the other run: {((whole.xs(model.d_model, level='k') - 1).abs() < 1e-2).all()}")

# %% [markdown]
# As a linear claim this is weak: principal directions are those in which the runs differ *most*, not those on which the
# answer depends, and intermediate values of a logit difference mean little. Directions *trained* for their effect, as
# in distributed alignment search, would be the next step; `patching/engine/attribution.py` shows how to take gradients
# through the loop. But this is a complete experiment: a question, a held-out half, a control, two identities, and a
# chart.
#
# `steer(vector, 2.0)` adds a vector; next, another model: [4. A real checkpoint](04_real_checkpoint.ipynb).

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
# # 1. One pair, one patch
#
# A [CODI](https://arxiv.org/abs/2502.21074) model answers a question after a *thought* without words: the question ends
# in a begin-of-thought token (BoT); the final hidden state there, projected, is fed as **latent step 0**; the final
# hidden state after that is projected and fed as step 1; and so on for six steps. Then an end-of-thought token (EoT) is
# fed, and the answer is written.
#
# Here we take two questions that differ in one number, compare their thoughts, and copy one vector from one into the
# other with a plain Python function. It needs only this project and a small shipped model: no GPU, no network.

# %%
import os
from pathlib import Path

import altair as alt
import pandas as pd

import codi_tracing as ct
import codi_tracing.analysis
from codi_tracing.analysis.figures.style import dress, heading
from codi_tracing.traces.loop.tokens import answer_ids, question_ids

alt.renderers.enable("png")  # pictures that stay in the saved notebook
os.chdir(
    Path(codi_tracing.analysis.__file__).parents[1]
)  # paths are relative to the repository, wherever this notebook runs

# %% [markdown]
# ## The model and the pair
#
# `thought` is one of two tiny models in [traces/embedded](../../traces/embedded/README.md). It adds and subtracts in
# short stories, and **it was trained so that its answer follows the thought, with a result of the chain at each
# step**. The findings below are there by design: they show that the instrument works and are no evidence about CODI.

# %%
model = ct.load_codi("thought", device="cpu")
print(f"{model.n_layers} layers, {model.n_latents} latent steps, residual stream of width {model.d_model}")
print(f"LoRA on {model.loaded.landed} of {model.loaded.expected} linear layers")

# %%
pairs = ct.load_pairs("arithmetic")
pair = pairs[5]
for name, side in (("clean", pair.clean), ("corrupted", pair.corrupted)):
    print(f"{name}: {side.question}\n    {', '.join(side.chain)}\n")

# %% [markdown]
# Carla sells 9 pens or 6: the second result of the chain, and all results after it, differ. Both questions have equally
# many tokens, so a step has the same position in both runs.
#
# `ask` answers a question and reads the final hidden state of each step through the LM head (a *logit lens*: the
# nearest tokens, which are not necessarily what the model uses).

# %%
asked = {
    name: ct.ask(model, side.question, top=1) for name, side in (("clean", pair.clean), ("corrupted", pair.corrupted))
}
pd.DataFrame(
    {name: [*(step[0] for step in found.steps), found.answer_text] for name, found in asked.items()},
    index=[*(f"step {step}" for step in range(model.n_latents)), "answer"],
)

# %% [markdown]
# ## Both thoughts, recorded
#
# `record` runs questions and keeps the residual stream after every block at every step. How far apart are the two runs?

# %%
both = ct.record(model, [pair.clean.question, pair.corrupted.question])
print("residual streams:", dict(zip(("pair", "layer", "step", "d_model"), both.resid.shape, strict=True)))
clean, corrupted = both.resid

distance = (clean - corrupted).norm(dim=-1) / corrupted.norm(dim=-1)


# %%
def by_site(values):
    """A row for each layer and step of a [layer, step] array."""
    sites = [(layer, step) for layer in range(model.n_layers) for step in range(model.n_latents)]
    rows = [(layer, step, float(values[layer][step])) for layer, step in sites]
    return pd.DataFrame(rows, columns=["layer", "step", "value"])


def draw(values, title, subtitle, name, scheme, domain):
    """A number for each layer and step; dark cells are far from 0."""
    base = alt.Chart(by_site(values)).encode(
        x=alt.X("step:O", title="latent step", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("layer:O", title="layer", sort="descending"),
    )
    scale = alt.Scale(scheme=scheme, domain=domain, clamp=True)
    legend = alt.Legend(values=[whole for whole in (-1, 0, 1) if whole >= domain[0]], gradientLength=90)
    ink = alt.condition(abs(alt.datum.value) > 0.6, alt.value("white"), alt.value("#222"))
    cells = base.mark_rect().encode(color=alt.Color("value:Q", title=name, scale=scale, legend=legend))
    numbers = base.mark_text(fontSize=10).encode(text=alt.Text("value:Q", format=".2f"), color=ink)
    return dress((cells + numbers).properties(width=300, height=110), heading(title, subtitle, width=420))


draw(
    distance,
    "How far apart the two residual streams are",
    "|clean - corrupted| / |corrupted| after each block; one pair",
    "distance",
    "greys",
    [0, 1.25],
)

# %% [markdown]
# Up to the first result of the chain, which they share, the two thoughts are almost equal; from the end of step 2 on
# they differ. But this picture only shows *differences*. Patching tests whether the answer depends on them.
#
# ## One number for "which answer"
#
# The answer's text is coarse: it flips or it does not. So we also read the **logit difference** after "The answer is:":
# the logit of the clean answer's token minus that of the corrupted answer's token.


# %%
def answer_token(side):
    """The token after the answer prefix; in this vocabulary each number is one token."""
    (token,) = answer_ids(model, f" {side.answer:g}")[len(answer_ids(model)) :]
    return token


def logit_difference(thought, row=0):
    """Above 0 the clean answer is more likely."""
    logits = thought.logits[row]
    return float(logits[answer_token(pair.clean)] - logits[answer_token(pair.corrupted)])


y_clean, y_corrupted = logit_difference(both, 0), logit_difference(both, 1)
print(f"clean run:     {both.answers[0]!r}, logit difference {y_clean:6.2f}")
print(f"corrupted run: {both.answers[1]!r}, logit difference {y_corrupted:6.2f}")

# %% [markdown]
# ## One patch
#
# *Denoising*: we run the corrupted question (the *host*) and write into it one vector of the clean run (the *donor*):
# the residual stream after layer 3 at step 2.
#
# The function below is called inside the [nnsight](https://nnsight.net) trace of each latent step, at each block in
# forward order. `block` is nnsight's envoy of the block: `block.output` and the block's modules can be read and
# written. `block.output[:, 0]` is `[question, d_model]`; we run one question.

# %%
LAYER, STEP = 3, 2


def write_clean(block, layer, step):
    """Write the clean run's residual stream at one site."""
    if (layer, step) == (LAYER, STEP):
        block.output[:, 0] = clean[LAYER, STEP]


def effect(thought):
    """0: as the corrupted run; 1: as the clean run."""
    return (logit_difference(thought) - y_corrupted) / (y_clean - y_corrupted)


patched = ct.record(model, [pair.corrupted.question], edits=[write_clean])
print(f"patched run:   {patched.answers[0]!r}, logit difference {logit_difference(patched):6.2f}")
print(f"effect {effect(patched):.2f} (0 is the corrupted run, 1 the clean one)")

# %% [markdown]
# One vector of 64 numbers changes the answer to the corrupted question into the clean answer.
#
# A patch is credible only if two identities hold. A run patched **with itself** must not change. And the residual
# stream **after the last layer at the last step** cannot matter: its projection is never fed back, and nothing reads
# it. `codi check` tests both, and more, on any model.


# %%
def write(vector, at):
    """An edit that writes one vector at one (layer, step)."""

    def edit(block, layer, step):
        if (layer, step) == at:
            block.output[:, 0] = vector

    return edit


def largest_change(edit):
    """The largest change of any logit of the corrupted run by an edit."""
    return float((ct.record(model, [pair.corrupted.question], edits=[edit]).logits[0] - both.logits[1]).abs().max())


last = model.n_layers - 1, model.n_latents - 1
changes = {
    "patched with itself": largest_change(write(corrupted[LAYER, STEP], (LAYER, STEP))),
    "last layer, last step, clean values": largest_change(write(clean[last], last)),
    "the patch above": largest_change(write_clean),
}
for name, change in changes.items():
    print(f"{name}: {'changes nothing' if change < 1e-4 else f'moves a logit by {change:.1f}'}")

# %% [markdown]
# ## Every site
#
# The same at each layer and step: 24 runs of the corrupted question, each with one vector of the clean run.

# %%
sites = [(layer, step) for layer in range(model.n_layers) for step in range(model.n_latents)]
effects = clean.new_zeros(model.n_layers, model.n_latents)
for site in sites:
    effects[site] = effect(ct.record(model, [pair.corrupted.question], edits=[write(clean[site], site)]))

HOW = "On the corrupted run's logit difference (0 host, 1 donor); one pair"
draw(effects, "Effect of one vector of the clean run", HOW, "effect", "blueorange", [-1.25, 1.25])

# %% [markdown]
# Compare with the distances above. The differing result enters the thought after the last layer at step 2; from then on
# one vector, in any layer of any step, decides the answer. But at the last step, layers 2 and 3 differ between the runs
# about as much as elsewhere (0.77 and 0.75) without any effect on the answer.
#
# ## Is it *this* vector?
#
# Any write disturbs a run. So we write, at the same sites, the vector of an **unrelated** question with equally many
# tokens and another answer. It has no information about this pair.


# %%
def tokens(question):
    return len(question_ids(model, question))


stranger = next(
    candidate
    for candidate in pairs
    if tokens(candidate.clean.question) == tokens(pair.clean.question)
    and candidate.clean.answer not in {pair.clean.answer, pair.corrupted.answer}
    and candidate.cluster_id != pair.cluster_id
)
unrelated = ct.record(model, [stranger.clean.question]).resid[0]
print(f"unrelated: {stranger.clean.question}\n    {', '.join(stranger.clean.chain)}\n")

controls = clean.new_zeros(model.n_layers, model.n_latents)
answers = {}
for site in sites:
    run = ct.record(model, [pair.corrupted.question], edits=[write(unrelated[site], site)])
    controls[site], answers[site] = effect(run), run.answers[0]
print(f"unrelated vector at layer {LAYER}, step {STEP}: effect {controls[LAYER, STEP]:.2f}, {answers[LAYER, STEP]!r}")

draw(controls, "Effect of one vector of an unrelated run", HOW, "effect", "blueorange", [-1.25, 1.25])

# %% [markdown]
# The numbers are far from 0, although the model gives neither answer of the pair. The logit difference compares *two*
# logits. If a write destroys the answer, both fall, and their difference is arbitrary, on average about half-way. **So
# an effect near 0.5 on the logit difference is no evidence.** The library's headline is therefore *transfer*, the
# effect on the probability of the other run's whole answer, which a write that only destroys leaves at 0; and it always
# runs this control.
#
# ## What the library does with it
#
# `sweep` runs all these sites, for many pairs, in both directions, with controls, in one forward, and returns a table
# with one row for each patched run × metric. Its numbers equal those computed by hand:

# %%
table = ct.sweep(
    model,
    [pair],
    sites=ct.sitewise(model),
    sources=[ct.other],
    directions=["denoising"],
    metrics=["logit_difference"],
)
swept = ct.effect(table).set_index(["layer", "step"])["effect"]
by_hand = by_site(effects).set_index(["layer", "step"])["value"]
same = (swept - by_hand).abs().max() < 1e-4
print(f"{len(table)} rows; as by hand, within 1e-4: {same}")

# %% [markdown]
# ## Conclusions
#
# * Supported: in *this* pair, one vector is enough to give the corrupted question the clean answer, from step 2 on.
# * Not supported: step 2 is "where the subtraction happens". In another pair another number changes, and the picture
#   shifts; and this model was trained with a schedule of results.
# * Not supported: a site with a small effect is unused. Other sites may carry the same information.
#
# Many pairs, the whole thought, and a second model: [2. The grid](02_the_grid.ipynb).

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
# Here we take two questions that differ in one number, look at both thoughts, and copy a single vector from one into
# the other by a plain Python function. Nothing but this project and a small model that it ships is needed: no GPU, no
# network.

# %%
import os
from pathlib import Path

import altair as alt
import pandas as pd

import codi_tracing.analysis
from codi_tracing.analysis.figures.style import dress, heading
from codi_tracing.analysis.statistics.effects import effect as add_effect
from codi_tracing.patching.engine.sweep import sweep
from codi_tracing.patching.interventions.sites import sitewise
from codi_tracing.patching.interventions.sources import other
from codi_tracing.patching.pairs.pair import load_pairs
from codi_tracing.traces.lens import ask
from codi_tracing.traces.loop.recording import record
from codi_tracing.traces.loop.tokens import answer_ids, question_ids
from codi_tracing.traces.model.loading import load_codi

alt.renderers.enable("png")  # pictures that stay in the saved notebook
os.chdir(
    Path(codi_tracing.analysis.__file__).parents[1]
)  # paths are relative to the repository, wherever this notebook runs

# %% [markdown]
# ## The model and the pair
#
# `thought` is one of two tiny models in [traces/embedded](../../traces/embedded/README.md). It does additions and
# subtractions in little stories, and **it was trained so that its answer has to come through the thought, with a result
# of the chain at each step**. So what we find below is there by design. It is a model on which one can see that the
# instrument works, and no evidence about CODI.

# %%
model = load_codi("traces/embedded/thought", device="cpu")
print(f"{model.n_layers} layers, {model.n_latents} latent steps, residual stream of width {model.d_model}")
print(f"LoRA on {model.loaded.landed} of {model.loaded.expected} linear layers")

# %%
pairs = load_pairs("patching/data/arithmetic_pairs.json")
pair = pairs[5]
for name, side in (("clean", pair.clean), ("corrupted", pair.corrupted)):
    print(f"{name}: {side.question}\n    {', '.join(side.chain)}\n")

# %% [markdown]
# Carla sells 9 pens or 6: the second result of the chain, and all after it, differ. Both questions have equally many
# tokens, so that a step stands at the same position in both runs.
#
# `ask` answers a question, and reads the final hidden state of each step through the LM head (a *logit lens*: the
# tokens nearest to it, which need not be what the model makes of it).

# %%
asked = {
    name: ask(model, side.question, top=1) for name, side in (("clean", pair.clean), ("corrupted", pair.corrupted))
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
both = record(model, [pair.clean.question, pair.corrupted.question])
print("residual streams:", dict(zip(("pair", "layer", "step", "d_model"), both.resid.shape, strict=True)))
clean, corrupted = both.resid

distance = (clean - corrupted).norm(dim=-1) / corrupted.norm(dim=-1)


# %%
def by_place(values):
    """A row for each layer and step of a [layer, step] array."""
    places = [(layer, step) for layer in range(model.n_layers) for step in range(model.n_latents)]
    rows = [(layer, step, float(values[layer][step])) for layer, step in places]
    return pd.DataFrame(rows, columns=["layer", "step", "value"])


def draw(values, title, subtitle, name, scheme, domain):
    """A number for each layer and step, dark where it is far from 0."""
    base = alt.Chart(by_place(values)).encode(
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
# Up to the first result of the chain, which they share, the two thoughts are almost the same; from the end of step 2 on
# they are not. But this is a picture of what *differs*. Whether the answer depends on a difference is another question,
# and that is why one patches.
#
# ## One number for "which answer"
#
# The answer's text is coarse: it flips or it does not. Beside it we read the **logit difference** after "The answer
# is:": the logit of the clean answer's token minus that of the corrupted answer's.


# %%
def answer_token(side):
    """The token that follows the answer prefix; in this vocabulary each number is one token."""
    (token,) = answer_ids(model, f" {side.answer:g}")[len(answer_ids(model)) :]
    return token


def logit_difference(thought, row=0):
    """Above 0 the clean answer is the likelier of the two."""
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
# forward order. `block` is nnsight's envoy of the block: `block.output` can be read and written, and so can what is
# inside it. `block.output[:, 0]` is `[question, d_model]`; we run one question.

# %%
LAYER, STEP = 3, 2


def write_clean(block, layer, step):
    """The clean run's residual stream, at one place."""
    if (layer, step) == (LAYER, STEP):
        block.output[:, 0] = clean[LAYER, STEP]


def effect(thought):
    """0: as the corrupted run; 1: as the clean run."""
    return (logit_difference(thought) - y_corrupted) / (y_clean - y_corrupted)


patched = record(model, [pair.corrupted.question], edits=[write_clean])
print(f"patched run:   {patched.answers[0]!r}, logit difference {logit_difference(patched):6.2f}")
print(f"effect {effect(patched):.2f} (0 is the corrupted run, 1 the clean one)")

# %% [markdown]
# One vector of 64 numbers, and the answer to the corrupted question is the clean one's.
#
# Before one believes a patch, two things have to hold. A run that is patched **with itself** must not change. And the
# residual stream **after the last layer at the last step** cannot matter: the projection of it is never fed, and
# nothing reads it. Both are facts about the instrument; `codi check` tests them, and more, on any model.


# %%
def write(vector, at):
    """An edit that writes one vector at one (layer, step)."""

    def edit(block, layer, step):
        if (layer, step) == at:
            block.output[:, 0] = vector

    return edit


def largest_change(edit):
    """The most that an edit changes any logit of the corrupted run."""
    return float((record(model, [pair.corrupted.question], edits=[edit]).logits[0] - both.logits[1]).abs().max())


last = model.n_layers - 1, model.n_latents - 1
changes = {
    "patched with itself": largest_change(write(corrupted[LAYER, STEP], (LAYER, STEP))),
    "last layer, last step, clean values": largest_change(write(clean[last], last)),
    "the patch above": largest_change(write_clean),
}
for name, change in changes.items():
    print(f"{name}: {'changes nothing' if change < 1e-4 else f'moves a logit by {change:.1f}'}")

# %% [markdown]
# ## Every place
#
# The same at each layer and step: 24 runs of the corrupted question, each with one vector of the clean run.

# %%
places = [(layer, step) for layer in range(model.n_layers) for step in range(model.n_latents)]
effects = clean.new_zeros(model.n_layers, model.n_latents)
for place in places:
    effects[place] = effect(record(model, [pair.corrupted.question], edits=[write(clean[place], place)]))

HOW = "On the corrupted run's logit difference (0 host, 1 donor); one pair"
draw(effects, "Effect of one vector of the clean run", HOW, "effect", "blueorange", [-1.25, 1.25])

# %% [markdown]
# Compare with the distances above. The result that differs enters the thought after the last layer at step 2, and from
# then on one vector, in any layer of any step, decides the answer. But at the last step, layers 2 and 3 differ between
# the runs about as much as elsewhere (0.77 and 0.75), and make no difference to the answer.
#
# ## Is it *this* vector?
#
# Writing anything at all into a run disturbs it. So we write, at the same places, the vector of an **unrelated**
# question, of equally many tokens and with another answer. It knows nothing about Carla.


# %%
def tokens(question):
    return len(question_ids(model, question))


stranger = next(
    other
    for other in pairs
    if tokens(other.clean.question) == tokens(pair.clean.question)
    and not {other.clean.answer} & {pair.clean.answer, pair.corrupted.answer}
    and other.cluster_id != pair.cluster_id
)
unrelated = record(model, [stranger.clean.question]).resid[0]
print(f"unrelated: {stranger.clean.question}\n    {', '.join(stranger.clean.chain)}\n")

controls = clean.new_zeros(model.n_layers, model.n_latents)
said = {}
for place in places:
    run = record(model, [pair.corrupted.question], edits=[write(unrelated[place], place)])
    controls[place], said[place] = effect(run), run.answers[0]
print(f"unrelated vector at layer {LAYER}, step {STEP}: effect {controls[LAYER, STEP]:.2f}, {said[LAYER, STEP]!r}")

draw(controls, "Effect of one vector of an unrelated run", HOW, "effect", "blueorange", [-1.25, 1.25])

# %% [markdown]
# The numbers are far from 0, and yet the model says neither answer of the pair. The logit difference compares *two*
# logits. Where an answer is destroyed, both fall, and what is left between them is anything, on average about half way.
# **So an effect near 0.5 is no evidence, and the zero line of an effect is the unrelated donor, over many pairs.** The
# library always runs it beside the true one.
#
# ## What the library does with it
#
# `sweep` runs all these places, for many pairs, in both directions, with controls, in one forward, and puts each
# patched run × metric into one row of a table. Its numbers are those that we computed by hand:

# %%
table = sweep(
    model,
    [pair],
    sites=sitewise(model),
    sources=[other],
    directions=["denoising"],
    metrics=["logit_difference"],
)
swept = add_effect(table).set_index(["layer", "step"])["effect"]
by_hand = by_place(effects).set_index(["layer", "step"])["value"]
same = (swept - by_hand).abs().max() < 1e-4
print(f"{len(table)} rows; as by hand, within 1e-4: {same}")

# %% [markdown]
# ## What we may say
#
# * That in *this* pair, one vector suffices to give the corrupted question the clean answer, from step 2 on: yes.
# * That step 2 is "where the subtraction happens": no. In another pair another number is changed, and the picture
#   shifts; and this model was shown a timetable in its training.
# * That a place with a small effect is unused: no. The other places may carry the same.
#
# Many pairs, the whole thought, and a second model: [2. The grid](02_the_grid.ipynb).

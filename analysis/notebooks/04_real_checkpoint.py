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
# # 4. A real checkpoint
#
# CODI's authors published two checkpoints. Here one of them is converted, measured and patched. **Where its weights are
# absent, the cells that need them say `SKIPPED`**, and the same call is shown on the small model that we ship; the code
# is the real one either way. The saved copy of this notebook was made without the weights, to which we had no access.
# So what it says about them is what their authors and others report, and not what we measured.
#
# | | `zen-E/CODI-gpt2` | `zen-E/CODI-llama3.2-1b-Instruct` |
# |---|---|---|
# | base | `openai-community/gpt2` | `meta-llama/Llama-3.2-1B-Instruct` (gated) |
# | layers × width | 12 × 768 | 16 × 2048 |
# | LoRA | rank 128, alpha 32, on c_attn, c_proj, c_fc | rank 128, alpha 32, on q, k, v, o, gate, up, down |
# | projection (`prj_dim`) | 768 | 2048 |
# | latent steps | 6 | 6 |
# | GSM8K accuracy, reported | 43.7 % | 55.6 % |
#
# Of these, only what no tensor says has to be given: alpha, the number of steps (6 by default), and whether EOS stands
# before BoT (not in these two). Layers, widths and ranks are read off.
#
# ```bash
# hf download zen-E/CODI-gpt2 && hf download openai-community/gpt2      # once, while online
# ```

# %%
import os
import tempfile
from pathlib import Path

import altair as alt
import pandas as pd
import torch
from huggingface_hub import try_to_load_from_cache

import codi_tracing.analysis
from codi_tracing.analysis.figures.steps import steps_chart, steps_data
from codi_tracing.analysis.figures.style import BLUE, dress, heading
from codi_tracing.analysis.statistics.inference import share_interval
from codi_tracing.analysis.statistics.verdict import verdict
from codi_tracing.patching.engine.sweep import sweep
from codi_tracing.patching.interventions.sites import THOUGHT, stepwise
from codi_tracing.patching.pair_making.gsm8k import pairs_from_gsm8k
from codi_tracing.patching.pairs.donors import draw_unrelated
from codi_tracing.patching.pairs.pair import load_pairs, pairs_from_records
from codi_tracing.patching.pairs.selection import both_correct
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.patching.pairs.validity import split_usable
from codi_tracing.patching.pairs.verdicts import judge
from codi_tracing.traces.convert.convert import convert
from codi_tracing.traces.evaluate import score
from codi_tracing.traces.gsm8k import GsmProblem, read_problems
from codi_tracing.traces.loop.recording import record
from codi_tracing.traces.model.loading import load_codi, reinitialise
from codi_tracing.traces.training.word_problems import draw_problems

alt.renderers.enable("png")  # pictures that stay in the saved notebook
os.chdir(
    Path(codi_tracing.analysis.__file__).parents[1]
)  # paths are relative to the repository, wherever this notebook runs

PUBLISHED, BASE, FOLDER = "zen-E/CODI-gpt2", "openai-community/gpt2", Path("checkpoints/codi-gpt2")
GSM8K = Path("data/gsm8k_test.jsonl")  # openai/grade-school-math, grade_school_math/data/test.jsonl
ORIGINAL = Path("data/llama_clean_corrupted_pairs.json")  # GusSand/CoT_Exploration
ASKED, PATCHED = 100, 20  # so many questions and pairs of GSM8K: enough for a look, not for a paper

# %% [markdown]
# ## Converting
#
# Upstream stores one whole state dict: base, LoRA, an embedding with three more rows (pad, BoT, EoT), and the
# projection. `convert` (and `codi convert`) uses, compares or refuses every tensor of it. Loading with `strict=False`,
# as one is tempted to, drops half of the model in silence.


# %%
def cached(repository):
    """Whether a Hub repository's weights are in the local cache; nothing is fetched."""
    names = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


absent = [repository for repository in (PUBLISHED, BASE) if not cached(repository)]
if FOLDER.is_dir():
    print(f"{FOLDER} is there already")
elif absent:
    print(f"SKIPPED: {' and '.join(absent)}: not in the local Hugging Face cache")
else:
    print(pd.DataFrame(convert(PUBLISHED, BASE, FOLDER, alpha=32)).to_string(index=False))

published = load_codi(FOLDER) if FOLDER.is_dir() else None

# %% [markdown]
# The same on a small scale, there and back: the shipped `thought` in upstream's layout, converted by the same call.

# %%
shipped = load_codi("traces/embedded/thought", device="cpu")


def upstreams(model):
    """A model's tensors under upstream's names, the embedding with its three further rows."""
    state = {f"codi.base_model.model.{name}": tensor for name, tensor in model.lm._module.state_dict().items()}
    special = torch.stack([torch.zeros_like(model.bot), model.bot, model.eot])  # pad, BoT, EoT
    for name in [name for name in state if name.endswith(("embed_tokens.weight", "lm_head.weight"))]:
        state[name] = torch.cat([state[name], special])
    names = {"1": "prj.1", "3": "prj.3", "4": "prj.ln"}  # the two linear layers and the norm of the projection
    projection = {tuple(name.split(".")): tensor for name, tensor in model.project.state_dict().items()}
    return state | {f"{names[layer]}.{leaf}": tensor for (layer, leaf), tensor in projection.items()}


def convert_here(state, **given):
    """Save a state dict as upstream does, convert it in a folder that vanishes, and give back what came of it."""
    with tempfile.TemporaryDirectory() as place:
        torch.save(state, Path(place, "pytorch_model.bin"))
        try:
            parts = convert(place, "traces/embedded/base", Path(place, "converted"), **given)
        except ValueError as error:
            return str(error).replace(f"{place}/", "").replace(place, "upstream"), None
        return parts, load_codi(Path(place, "converted"), device="cpu")


state = upstreams(shipped)
parts, again = convert_here(state, alpha=32)
question = load_pairs("patching/data/arithmetic_pairs.json")[5].clean.question
same = torch.equal(record(again, [question]).logits, record(shipped, [question]).logits)
print(f"{len(state)} tensors there and back; the same logits, bit for bit: {same}")
pd.DataFrame(parts)

# %% [markdown]
# What does not fit is refused, in a sentence. Without alpha (a wrong one would load, and answer a little worse):

# %%
print(convert_here(state)[0], end="\n\n")

lacking = {name: tensor for name, tensor in state.items() if "layers.2.mlp.up_proj.lora_B" not in name}
print(convert_here(lacking, alpha=32)[0], end="\n\n")

without_projection = {name: tensor for name, tensor in state.items() if not name.startswith("prj.")}
print(convert_here(without_projection, alpha=32)[0])

# %% [markdown]
# ## First of all: does it answer?
#
# A conversion is right when the accuracy is the reported one. Before that, no patch means anything. `score` answers
# greedily with 0, 1, … of the latent steps; from the command line it is `codi eval`, for all 1319 questions, with
# intervals.


# %%
def accuracy_by_steps(model, problems, steps, **options):
    """The share of correct answers with so many latent steps, with Wilson's interval."""
    rows = []
    for count in steps:
        right = sum(scored.correct for scored in score(model, problems, count, **options))
        rows.append((count, right / len(problems), *share_interval(right, len(problems))))
    return pd.DataFrame(rows, columns=["steps", "accuracy", "low", "high"])


def accuracy_chart(found, title, n):
    """Accuracy by the number of latent steps."""
    base = alt.Chart(found).encode(x=alt.X("steps:O", title="latent steps", axis=alt.Axis(labelAngle=0)))
    share = alt.Y("accuracy:Q", title="accuracy", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))
    bars = base.mark_rule(color=BLUE).encode(y="low:Q", y2="high:Q")
    points = base.mark_line(color=BLUE, point=alt.OverlayMarkDef(color=BLUE)).encode(y=share)
    chart = (bars + points).properties(width=300, height=170)
    return dress(chart, heading(title, f"Bars: 95%; n = {n} questions", width=400))


if published is None or not GSM8K.is_file():
    print(f"SKIPPED: GSM8K's accuracy needs {FOLDER} and {GSM8K}")
else:
    questions = read_problems(GSM8K)[:ASKED]
    steps = (0, published.n_latents)
    print(accuracy_by_steps(published, questions, steps, max_new_tokens=32).round(3).to_string(index=False))
    print("reported by its authors, on all 1319: 0.437")

# %% [markdown]
# The shipped model on its own kind of problem, by the same call:

# %%
problems = [
    GsmProblem(line, p.question, "", p.answer) for line, p in enumerate(draw_problems(seed=7, count=200), start=1)
]
by_steps = accuracy_by_steps(shipped, problems, range(shipped.n_latents + 1), max_new_tokens=8)
accuracy_chart(by_steps, "Accuracy of the shipped model, stopped early", len(problems))

# %% [markdown]
# Accuracy that needs all six steps shows that the thought is *needed*. It does not show that the thought *carries* the
# answer: that is what [2. The grid](02_the_grid.ipynb) is about. For early stops of published checkpoints, compare with
# arXiv 2602.08783.
#
# ## Pairs that are a contrast
#
# The original experiment's 66 pairs came with "all answers verified". Nine of them have **one answer on both sides**,
# so that their logit difference is always 0. Each of them dilutes every average. Whatever pairs you bring: look first.

# %%
if not ORIGINAL.is_file():
    print(f"SKIPPED: {ORIGINAL} is not there")
else:
    usable, refused = split_usable(load_pairs(ORIGINAL))
    print(f"{len(usable)} pairs usable, {len(refused)} not; for instance: {refused[0][1] if refused else None}")


# %%
def records(pair_id, clean, corrupted):
    """A pair in the original experiment's format, from two (question, answer)."""
    sides = (("clean", clean), ("corrupted", corrupted))
    return [{"pair_id": pair_id, "variant": name, "question": q, "answer": a} for name, (q, a) in sides]


HAD, BOUGHT, LOST, ASKS = (
    "On Sunday Carla had {} coins.",
    "On Monday Carla bought {} coins.",
    "On Tuesday Carla lost 18 coins.",
    "How many coins does Carla have now?",
)
STORY, SHORT = f"{HAD} {BOUGHT} {LOST} {ASKS}", f"{HAD} {BOUGHT} {ASKS}"
mine = pairs_from_records(
    [
        *records("good", (STORY.format(21, 12), 15), (STORY.format(23, 12), 17)),
        *records("one answer", (STORY.format(21, 12), 15), (STORY.format(12, 21), 15)),
        *records("wrong key", (STORY.format(21, 12), 15), (STORY.format(23, 12), 16)),
        *records("lengths differ", (STORY.format(21, 12), 15), (SHORT.format(21, 12), 33)),
    ]
)
for found in judge(mine, shipped):
    print(f"{found.pair_id}: {found.verdict}{''.join(f'; {reason}' for reason in found.reasons)}")

# %% [markdown]
# GSM8K's annotated solutions make pairs whose answers are computed, not typed (`codi pairs make`); of the test set, 717
# questions yield one. Then only those count that the model answers correctly on *both* sides, measured, not taken from
# a file. At 43.7 % accuracy that is a minority, and a selected one: what holds of it holds of questions that this model
# can do.

# %%
if published is None or not GSM8K.is_file():
    print(f"SKIPPED: pairs from GSM8K need {FOLDER} and {GSM8K}")
    ready = []
else:
    made, funnel = pairs_from_gsm8k(read_problems(GSM8K))
    ready, unfit = tokenize_pairs(published, pairs_from_records(made)[: 5 * PATCHED])
    ready, wrong = both_correct(published, ready, 32)
    print(f"{funnel.pairs} pairs made; of the first {5 * PATCHED}, {len(unfit)} unfit, {len(wrong)} not answered")

# %% [markdown]
# ## The first sweep
#
# Whole steps (all layers), in both directions, beside unrelated donors and the whole thought. An early step has more of
# the run after it than a late one, so a slope over steps is there in *any* model. Two things stand beside it: the same
# with the ways through later steps held (`freeze`: the step then acts only through what the answer reads of it), and
# the same in the model before training.


# %%
def by_step(model, pairs, **options):
    """A table of whole steps: free, with R and K_T held, and before training."""
    options["metrics"] = ["logit_difference", "answer_is_clean", "answer_is_corrupted"]
    blank = sweep(reinitialise(model), pairs, sites=stepwise(model), **options)
    return pd.concat(
        [
            sweep(model, pairs, sites=[*stepwise(model), THOUGHT], **options),
            sweep(model, pairs, sites=stepwise(model), freeze=["R", "K_T"], **options),
            blank.assign(protocol="latent_loop_reinitialised"),
        ],
        ignore_index=True,
    )


if not ready:
    print("SKIPPED: no pairs of the published model")
else:
    strangers = draw_unrelated(ready, seed=0)  # from all, not the patched
    table = by_step(published, [p.pair for p in ready[:PATCHED]], donors=strangers[:PATCHED])
    print(verdict(table).sentence)

# %%
table = by_step(shipped, load_pairs("patching/data/arithmetic_pairs.json"))
print(verdict(table).sentence)
steps_chart(steps_data(table))

# %% [markdown]
# With the ways held (below), each step acts only through its own cache entries as the answer reads them, and equally
# much of the run comes after each. What is left says where the answer is read: at step 5, and in some pairs at step 3.
# Those are the stories with two operations, whose chain ends there:

# %%
held = table.query("freeze == 'R+K_T' and source == 'clean' and metric == 'answer_is_clean' and step == 3")
operations = {str(pair.pair_id): len(pair.clean.chain) for pair in load_pairs("patching/data/arithmetic_pairs.json")}
print("share of clean answers with step 3 written, its ways through later steps held, by operations:")
print(held.groupby(held["pair_id"].map(operations).rename("operations"))["patched"].mean().round(2).to_string())

# %% [markdown]
# ## What to compare a published checkpoint with
#
# | reported | where | what to run |
# |---|---|---|
# | GSM8K accuracy 43.7 % (GPT-2), 55.6 % (Llama-1B) | the checkpoints' authors | `codi eval` |
# | values are stored at the third and fifth of six latents (steps 2 and 4); even steps store, odd steps compute (Llama-1B) | Cywiński et al. 2025; "Scratchpad Thinking", 2025 | `configs/stepwise.toml`, `ask` for the lens |
# | ablation_data by step, early stops, influence of step on step | arXiv 2602.08783 | `configs/ablation.toml`, `early_stop.toml`, `influence.toml` |
# | decodability, late fusion at EoT | arXiv 2602.00449 | `ask`; metrics whose names end in `_at_eot` |
# | gold traces decodable in 65–93 % of correct cases | arXiv 2604.04902 | `ask` |
# | layers ranked 5 > 4 > 3 by KL .00233, .00231, .00203 (SD .0027, n = 66), "layer 15 exactly 0" | the original experiment, one pass over pads | `configs/placeholder.toml`: both protocols beside each other |
#
# The last row is a warning. That zero is structural, the ranking lies within one standard error, and the latent loop
# had not run. Steps are counted from 0 here.
#
# What is different from the small model, and easily overlooked:
#
# * **The answer's position.** The logits at EoT predict "The", never a number. Llama writes " 18" as two tokens (the
#   space, then up to three digits each), GPT-2 as one. The library reads at the first token at which the two answers
#   differ, behind all that they share.
# * **Padding.** The published evaluation pads a batch and then does not mask it; here it is masked, so one question's
#   answer does not depend on its neighbours. Small differences to reported accuracies are to be expected.
# * **bf16.** "Changes nothing" then means: no more than the spread among unpatched copies in the same forward. Run
#   `codi check checkpoints/codi-gpt2` before anything else.
# * **Equal token counts.** A pair's questions need them, and so does its unrelated donor; the run's manifest lists
#   pairs without one.
#
# The whole experiment is a command: `codi run configs/gsm8k_gpt2.toml` (or `gsm8k_llama1b.toml`), and goes on where it
# was stopped.

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
# CODI's authors published two checkpoints. Here one of them is converted, measured and patched. **Without its weights,
# the cells that need them print `SKIPPED`**, and the same call runs on the small shipped model; the code is the same.
# The saved copy of this notebook was made without the weights, to which we had no access: numbers about the published
# checkpoints are reported by their authors and others, not measured here.
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
# Only settings that the tensors do not determine have to be given: alpha, the number of steps (6 by default), and
# whether EOS precedes BoT (not in these two). Layers, widths and ranks are read from the tensors.
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

import codi_tracing as ct
import codi_tracing.analysis
from codi_tracing.analysis.figures.style import BLUE, dress, heading
from codi_tracing.analysis.statistics.inference import share_intervals
from codi_tracing.patching.pair_making.gsm8k import pairs_from_gsm8k
from codi_tracing.patching.pairs.donors import draw_unrelated
from codi_tracing.patching.pairs.pair import pairs_from_records
from codi_tracing.patching.pairs.selection import both_correct
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.patching.pairs.validity import split_usable
from codi_tracing.patching.pairs.verdicts import judge
from codi_tracing.traces.convert.convert import convert
from codi_tracing.traces.evaluate import score
from codi_tracing.traces.gsm8k import GsmProblem, read_problems
from codi_tracing.traces.model.loading import reinitialise
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
# projection. `convert` (and `codi convert`) uses, compares or refuses every tensor of it. Loading with `strict=False`
# would silently drop half of the model.


# %%
def cached(repository):
    """Whether a Hub repository's weights are in the local cache; downloads nothing."""
    names = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


absent = [repository for repository in (PUBLISHED, BASE) if not cached(repository)]
if FOLDER.is_dir():
    print(f"{FOLDER} exists")
elif absent:
    print(f"SKIPPED: {' and '.join(absent)}: not in the local Hugging Face cache")
else:
    print(pd.DataFrame(convert(PUBLISHED, BASE, FOLDER, alpha=32)).to_string(index=False))

published = ct.load_codi(FOLDER) if FOLDER.is_dir() else None

# %% [markdown]
# The same on a small scale, as a round trip: the shipped `thought` in upstream's layout, converted by the same call.

# %%
shipped = ct.load_codi("thought", device="cpu")


def upstream_state(model):
    """A model's tensors under upstream's names; the embedding has three further rows."""
    state = {f"codi.base_model.model.{name}": tensor for name, tensor in model.lm._module.state_dict().items()}
    special = torch.stack([torch.zeros_like(model.bot), model.bot, model.eot])  # pad, BoT, EoT
    for name in [name for name in state if name.endswith(("embed_tokens.weight", "lm_head.weight"))]:
        state[name] = torch.cat([state[name], special])
    names = {"1": "prj.1", "3": "prj.3", "4": "prj.ln"}  # the two linear layers and the norm of the projection
    projection = {tuple(name.split(".")): tensor for name, tensor in model.project.state_dict().items()}
    return state | {f"{names[layer]}.{leaf}": tensor for (layer, leaf), tensor in projection.items()}


def convert_here(state, **given):
    """Save a state dict as upstream does and convert it in a temporary folder: the parts and the model, or the error."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder, "pytorch_model.bin"))
        try:
            parts = convert(folder, "traces/embedded/base", Path(folder, "converted"), **given)
        except ValueError as error:
            return str(error).replace(f"{folder}/", "").replace(folder, "upstream"), None
        return parts, ct.load_codi(Path(folder, "converted"), device="cpu")


state = upstream_state(shipped)
parts, again = convert_here(state, alpha=32)
question = ct.load_pairs("arithmetic")[5].clean.question
same = torch.equal(ct.record(again, [question]).logits, ct.record(shipped, [question]).logits)
print(f"{len(state)} tensors converted back; the same logits, bit for bit: {same}")
pd.DataFrame(parts)

# %% [markdown]
# A state dict that does not fit is refused with an error. Without alpha (a wrong alpha would load and lower the
# accuracy slightly):

# %%
print(convert_here(state)[0], end="\n\n")

incomplete = {name: tensor for name, tensor in state.items() if "layers.2.mlp.up_proj.lora_B" not in name}
print(convert_here(incomplete, alpha=32)[0], end="\n\n")

without_projection = {name: tensor for name, tensor in state.items() if not name.startswith("prj.")}
print(convert_here(without_projection, alpha=32)[0])

# %% [markdown]
# ## First: accuracy
#
# A conversion is correct if the accuracy equals the reported one; without that, no patch can be interpreted. `score`
# decodes greedily with 0, 1, … latent steps; on the command line it is `codi eval`, for all 1319 questions, with
# intervals.


# %%
def accuracy_by_steps(model, problems, steps, **options):
    """The share of correct answers by number of latent steps, with Wilson's interval."""
    rows = []
    for count in steps:
        right = sum(scored.correct for scored in score(model, problems, count, **options))
        rows.append((count, right / len(problems), *map(float, share_intervals(right / len(problems), len(problems)))))
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
    questions = read_problems(GSM8K).problems[:ASKED]
    steps = (0, published.n_latents)
    print(accuracy_by_steps(published, questions, steps, max_new_tokens=32).round(3).to_string(index=False))
    print("reported by its authors, on all 1319: 0.437")

# %% [markdown]
# The shipped model on problems of its own kind, with the same call:

# %%
problems = [
    GsmProblem(line, p.question, "", p.answer) for line, p in enumerate(draw_problems(seed=7, count=200), start=1)
]
by_steps = accuracy_by_steps(shipped, problems, range(shipped.n_latents + 1), max_new_tokens=8)
accuracy_chart(by_steps, "Accuracy of the shipped model, stopped early", len(problems))

# %% [markdown]
# If accuracy needs all six steps, the thought is *needed*. That does not show that the thought *carries* the answer:
# see [2. The grid](02_the_grid.ipynb). For early stops of published checkpoints, compare with arXiv 2602.08783.
#
# ## Usable pairs
#
# The original experiment's 66 pairs came with "all answers verified". Nine of them have **the same answer on both
# sides**, so their logit difference is always 0, and they dilute every average. Check any pairs before you use them.

# %%
if not ORIGINAL.is_file():
    print(f"SKIPPED: {ORIGINAL} does not exist")
else:
    usable, refused = split_usable(ct.load_pairs(ORIGINAL))
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
# GSM8K's annotated solutions give pairs whose answers are computed (`codi pairs make`); 717 questions of the test set
# yield one. Only pairs that the model answers correctly on *both* sides count, measured, not taken from a file. At 43.7
# % accuracy they are a selected minority: results hold for questions that this model can answer.

# %%
if published is None or not GSM8K.is_file():
    print(f"SKIPPED: pairs from GSM8K need {FOLDER} and {GSM8K}")
    ready = []
else:
    made, funnel = pairs_from_gsm8k(read_problems(GSM8K).problems)
    ready, unfit = tokenize_pairs(published, pairs_from_records(made)[: 5 * PATCHED])
    ready, wrong = both_correct(published, ready, 32)
    print(f"{funnel.pairs} pairs made; of the first {5 * PATCHED}, {len(unfit)} unfit, {len(wrong)} not answered")

# %% [markdown]
# ## The first sweep
#
# Whole steps (all layers), in both directions, with unrelated donors and the whole thought. An early step has more of
# the run after it than a late one, so *any* model has a slope over steps. Two controls: the same with frozen routes
# through later steps (`freeze`: the step then acts only through its cache as the answer reads it), and the same in the
# model before training.


# %%
def by_step(model, pairs, **options):
    """A table of whole steps: free, with R and K_T frozen, and before training."""
    blank = ct.sweep(reinitialise(model), pairs, sites=ct.stepwise(model), **options)
    return pd.concat(
        [
            ct.sweep(model, pairs, sites=[*ct.stepwise(model), ct.THOUGHT], **options),
            ct.sweep(model, pairs, sites=ct.stepwise(model), freeze=["R", "K_T"], **options),
            blank.assign(protocol="latent_loop_reinitialised"),
        ],
        ignore_index=True,
    )


if not ready:
    print("SKIPPED: no pairs of the published model")
else:
    donors = draw_unrelated(ready, seed=0)  # from all pairs, not only the patched ones
    table = by_step(published, [p.pair for p in ready[:PATCHED]], donors=donors[:PATCHED])
    print(ct.verdict(table).sentence)

# %%
table = by_step(shipped, ct.load_pairs("arithmetic"))
print(ct.verdict(table).sentence)
ct.steps_chart(ct.steps_data(table))

# %% [markdown]
# The model before training answers nothing, so it has no transfer. Its slope shows in the graded view, the logit
# difference, where an unrelated donor moves the run too:

# %%
ct.steps_chart(ct.steps_data(table, "logit_difference"))

# %% [markdown]
# With frozen routes (lower panels), each step acts only through its own cache entries as the answer reads them, and
# equally much of the run comes after each. What remains shows where the answer is read: at step 5, and in some
# pairs at step 3. Those are the stories with two operations, whose chain ends there:

# %%
frozen = table.query("freeze == 'R+K_T' and source == 'clean' and metric == 'answer_is_clean' and step == 3")
operations = {str(pair.pair_id): len(pair.clean.chain) for pair in ct.load_pairs("arithmetic")}
print("share of clean answers with step 3 written, R and K_T frozen, by number of operations:")
print(frozen.groupby(frozen["pair_id"].map(operations).rename("operations"))["patched"].mean().round(2).to_string())

# %% [markdown]
# ## What to compare a published checkpoint with
#
# | reported | where | what to run |
# |---|---|---|
# | GSM8K accuracy 43.7 % (GPT-2), 55.6 % (Llama-1B) | the checkpoints' authors | `codi eval` |
# | values are stored at the third and fifth of six latents (steps 2 and 4); even steps store, odd steps compute (Llama-1B) | Cywiński et al. 2025; "Scratchpad Thinking", 2025 | `configs/stepwise.toml`, `ask` for the lens |
# | ablations by step, early stops, influence of step on step | arXiv 2602.08783 | `configs/ablation.toml`, `early_stop.toml`, `influence.toml` |
# | decodability, late fusion at EoT | arXiv 2602.00449 | `ask`; metrics whose names end in `_at_eot` |
# | gold traces decodable in 65–93 % of correct cases | arXiv 2604.04902 | `ask` |
# | layers ranked 5 > 4 > 3 by KL .00233, .00231, .00203 (SD .0027, n = 66), "layer 15 exactly 0" | the original experiment, one pass over pads | `configs/original.toml`: both protocols side by side |
#
# The last row is a warning: that zero is structural, the ranking lies within one standard error, and the latent loop
# had not run. Steps are counted from 0 here.
#
# Differences from the small model that are easily overlooked:
#
# * **The answer's position.** The logits at EoT predict "The", never a number. Llama writes " 18" as two tokens (the
#   space, then up to three digits each), GPT-2 as one. The library reads at the first token at which the two answers
#   differ, behind all that they share.
# * **Padding.** The published evaluation pads a batch without masking it; here it is masked, so a question's answer does
#   not depend on the rest of the batch. Expect small differences to reported accuracies.
# * **bf16.** "Changes nothing" then means no more than the spread among unpatched copies in the same forward. First run
#   `codi check checkpoints/codi-gpt2`.
# * **Equal token counts.** A pair's questions and its unrelated donor need them; the run's manifest lists pairs without
#   a donor.
#
# The whole experiment is one command, `codi run configs/gsm8k_gpt2.toml` (or `gsm8k_llama1b.toml`); an interrupted run
# resumes.

"""The front door: the `codi` command. Thin; what is heavy is imported inside the commands, so that --help is quick."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from math import inf, isnan
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130  # exit codes
SHIPPED_PAIRS = Path(__file__).parent / "patching" / "data" / "arithmetic_pairs.json"


class FrontDoor(TyperGroup):
    """Turns every bad input into one line on stderr and exit code 2. Anything else that is raised is a bug of ours."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            stop(str(interruption) or "interrupted; what was not finished can be run again", INTERRUPTED)
        except MemoryError as error:
            stop(str(error) or "memory ran out; use a smaller batch or a larger machine", BAD_INPUT)
        except BrokenPipeError:
            raise
        except OSError as error:
            stop(f"{error.filename}: {error.strerror}" if error.filename else str(error), BAD_INPUT)
        except ValueError as error:
            stop(str(error), BAD_INPUT)


def stop(sentence: str, code: int) -> NoReturn:
    """Say why on stderr, in one line, and leave with `code`."""
    said = printable(from_here(sentence))
    typer.echo(f"codi: {said if len(said) <= 5_000 else f'{said[:5_000]}…'}", err=True)
    raise typer.Exit(code)


def from_here(text: object) -> str:
    """The same text, paths under the current folder relative to it."""
    return str(text).replace(f"{Path.cwd()}{os.sep}", "")


def printable(text: str) -> str:
    """The same text in one line, without what would steer a terminal: a file's own words may hold anything."""
    return "".join(letter if letter.isprintable() else "�" for letter in " ".join(text.split()))


app = typer.Typer(
    cls=FrontDoor,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Causal tracing of latent chain of thought.

    A CODI model thinks in latent steps, without text. `codi` runs a clean and a corrupted question, exchanges what
    happens inside their thoughts, and measures whether the answer follows.""",
    epilog="""\b
Start here:
  codi ask traces/embedded/thought "On Sunday Ann had 7 pens. ..."
  codi check traces/embedded/bypass   what must hold, and what it turns out to be
  codi run configs/tiny.toml          the layer-wise experiment, a minute
  codi plan configs/sitewise.toml     what a run will take, before it runs
  codi run configs/matched.toml       does the thought compute? configs/ has more
  codi lens traces/embedded/thought   what each latent says, beside what it does
  codi report runs/tiny               its figures and report again

A run that was interrupted, or killed, goes on when the same command is given
again; codi run --shard 2/8 runs one of eight slices, codi merge joins them.

\b
With your own pairs and model:
  codi convert upstreams_output --base gpt2 --alpha 32 --out my_model
  codi eval my_model --data gsm8k_test.jsonl
  codi pairs make gsm8k_test.jsonl --out my_pairs.json
  codi pairs check my_pairs.json --checkpoint my_model
  codi run configs/tiny.toml --checkpoint my_model --pairs my_pairs.json \\
      --limit 8 --out runs/mine

Paths on the command line are relative to the current folder, those in a config to that file.

Exit codes: 0 done, 1 an invariant failed, 2 bad input, 130 interrupted.""",
)
pairs_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Check a file of clean/corrupted pairs, or make one."
)
app.add_typer(pairs_app, name="pairs")
remote_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None,
    help="A deployment of NDIF: check it, or submit a run's jobs and collect them later. Its key is NDIF_API_KEY's.",
)  # fmt: skip
app.add_typer(remote_app, name="remote")

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file; configs/README.md lists every key.")]
Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A CODI checkpoint folder, with codi.json.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16.")]
Out = Annotated[Path | None, typer.Option(help="Where to write, instead of the config's `out`.")]
OnNdif = Annotated[
    bool, typer.Option("--remote", help="On a deployment of NDIF: the config's, else NDIF_HOST's, else the public one.")
]


@app.command()
def run(
    config: Config,
    out: Out = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Instead of the config's.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Instead of the config's.")] = None,
    limit: Annotated[int | None, typer.Option(help="Patch only the first so many usable pairs.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    remote: OnNdif = False,
    force: Annotated[bool, typer.Option("--force", help="Go on although an invariant failed.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run anew, replacing the run that the folder holds.")] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only the I-th of N slices, into a folder of its own.")
    ] = None,
) -> None:
    """Run an experiment, or go on with it where it was cut short, and report on it.

    The config names it: a sweep of patches (by default every layer at all latent steps, in both directions), or one of
    early_stop, influence, iterative, matched, placeholder, attribution, shapley; the controls run beside it.
    """
    from configs import RunConfig, load_config

    paths = {"out": here(out), "checkpoint": here(checkpoint), "pairs__file": here(pairs)}
    settings = load_config(
        config, RunConfig, **paths, pairs__limit=limit, device=device, dtype=dtype, remote=remote or None
    )
    part = None if shard is None else slice_of(shard)
    from analysis import write_report
    from patching.experiment import InvariantError, run_experiment

    folder = settings.out or Path("runs", settings.name)
    if part is not None and out is None:
        folder = folder.with_name(f"{folder.name}.{part[0]}-of-{part[1]}")
    before = modified(folder / "manifest.json")
    try:
        run_experiment(settings, folder, force=force, fresh=fresh, part=part)
    except InvariantError as error:
        stop(str(error), FAILED)
    if before is not None and modified(folder / "manifest.json") == before:
        typer.echo(f"codi: {from_here(folder)} holds this very run, finished; --fresh runs it again", err=True)
    if part is None:
        print_conclusions(folder, write_report(folder, progress=pair_bar))
        if settings.tracking is not None:
            tell_tracking(folder, **settings.tracking.model_dump())
    else:
        typer.echo(f"slice {shard} is in {from_here(folder)}; when all are there: codi merge RUN… --out DIR")


@app.command()
def plan(
    config: Config,
    checkpoint: Annotated[Path | None, typer.Option(help="Instead of the config's.")] = None,
    limit: Annotated[int | None, typer.Option(help="Patch only the first so many usable pairs.")] = None,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Only the I-th of N slices.")] = None,
    pairs: Annotated[int | None, typer.Option(help="Count so many pairs, not the file's.")] = None,
    tokens: Annotated[int | None, typer.Option(help="A question's length, not the file's.")] = None,
    shape: Annotated[str | None, typer.Option(help="A model's sizes by name, as llama-3.3-70b.")] = None,
    tflops: Annotated[float | None, typer.Option(help="Your machine's TFLOP/s, for seconds.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole plan as JSON.")] = False,
) -> None:
    """Tell what a run will take, before it: cells, forwards, FLOPs, memory, rows, and NDIF's jobs and bytes.

    Nothing runs. What is not at hand, checkpoint or pairs, is stood in for, and every assumption is said.
    """
    import json

    from configs import RunConfig, load_config

    settings = load_config(config, RunConfig, checkpoint=here(checkpoint), pairs__limit=limit)
    part = None if shard is None else slice_of(shard)
    for option, number in (("--pairs", pairs), ("--tokens", tokens)):
        if number is not None and not 1 <= number <= 1_000_000:
            raise ValueError(f"{option} is {number}, wanted 1 to 1000000")
    if tflops is not None and not 0 < tflops < inf:
        raise ValueError(f"--tflops is {tflops:g}, wanted a number above 0")
    from patching.at_hand import at_hand
    from patching.plan import plan_run
    from patching.plan_text import as_record, assumptions, memory_rows, product_rows, remote_rows, sweep_rows, time_rows

    found = plan_run(settings, at_hand(settings, pairs, tokens, shape), part)
    if as_json:
        typer.echo(json.dumps(as_record(found, tflops), indent=2, ensure_ascii=False))
        return
    typer.echo(f"{settings.name}: the experiment {settings.experiment}, with the sizes of {found.known.named}\n")
    typer.echo(aligned(sweep_rows(found)) + "\n")
    typer.echo(aligned([*product_rows(found), *memory_rows(found), *remote_rows(found), *time_rows(found, tflops)]))
    typer.echo("\nAssumed, and left out:")
    for sentence in assumptions(found):
        typer.echo(f"- {printable(sentence[0].upper() + sentence[1:])}.")


def tell_tracking(folder: Path, wandb: str, project: str, name: str | None) -> None:
    """Track a finished run; whatever goes wrong there is said, and the run is as good as before."""
    from analysis.tracking import track

    try:
        typer.echo(f"tracked ({wandb}) as {track(folder, wandb, project, name)}")
    except Exception as error:  # another's client, network and service
        said = printable(from_here(error)) or type(error).__name__
        typer.echo(f"codi: tracking: {said}; the run itself is whole", err=True)


def slice_of(text: str) -> tuple[int, int]:
    """The two numbers of --shard."""
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count) <= 100_000):
        raise ValueError(f"--shard is {text!r}, wanted i/n with i from 1 to n, as 2/8")
    return int(first), int(count)


@app.command()
def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="All slices of one run, in any order.")],
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
) -> None:
    """Join the slices that `codi run --shard` wrote, and report: the very table of the run in one piece.

    No model is needed. Slices of other runs, slices named twice and missing ones are refused.
    """
    from patching.slices import merge_slices

    folder = merge_slices(runs, out)
    from analysis import write_report

    print_conclusions(folder, write_report(folder, progress=pair_bar))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as `codi run` leaves it.")],
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the figures there, and not those of single pairs.")
    ] = None,
) -> None:
    """Draw a run's figures (PNG at 300 dpi, SVG, HTML, Vega-Lite) and report again from its table.

    What `codi lens` wrote is drawn again too.
    """
    if (run / "lens.json").is_file():
        from analysis.lens_page import write_lens_report

        print_lens(run, write_lens_report(run, figures=figures))
        return
    from analysis import write_report

    print_conclusions(run, write_report(run, figures or True, progress=pair_bar))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run folder.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another, on the same pairs.")],
    metric: Annotated[str, typer.Option(help="Whose effects are compared.")] = "logit_difference",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the table and the chart there.")] = None,
) -> None:
    """Compare two runs on the same pairs, as of two checkpoints or protocols: paired differences with intervals."""
    from analysis.conclusions import comparison
    from analysis.report import write_comparison

    print_paragraphs(comparison(first, second, metric))
    if out is not None:
        typer.echo(f"\nTable and chart: {from_here(write_comparison(first, second, out, metric))}")


@app.command()
def check(
    checkpoint: Checkpoint,
    pairs: Annotated[Path, typer.Option(help="Pairs to check with.", show_default="the shipped ones")] = SHIPPED_PAIRS,
    device: Device = "auto",
    dtype: Dtype = "auto",
    remote: OnNdif = False,
) -> None:
    """Check a model: what must hold, and what it turns out to be.

    Invariants hold in every model; where one fails, the exit code is 1. Findings are about this model.
    """
    from patching.contrast import split_usable
    from patching.pairs import load_pairs

    usable, excluded = split_usable(load_pairs(pairs))
    from analysis.conclusions import mark
    from patching.checks import check_checkpoint
    from traces import load_codi

    checks = [item._asdict() for item in check_checkpoint(load_codi(checkpoint, device, dtype, remote), usable)]
    for _, reason in excluded:
        typer.echo(f"excluded: {reason}")
    typer.echo(aligned([mark(item), item["name"], item["sentence"]] for item in checks))
    if failed := [item["name"] for item in checks if mark(item) == "FAILED"]:
        stop(f"{', '.join(failed)}: must hold in every model, so no number from this one can be trusted", FAILED)


@remote_app.command("check")
def check_remote(config: Config) -> None:
    """Ask whether the config's deployment would run it as it would run here: a job or two, before the sweep.

    The exit code is 1 where something fails that must hold: the adapter is not applied there, weights are others, a
    run patched with itself changes.
    """
    from configs import RunConfig, load_config

    settings = load_config(config, RunConfig, remote=True)
    assert settings.remote is not None
    if settings.remote.host == "local":
        raise ValueError(f'{config}: remote is "local", which is this machine; name a deployment\'s host')
    from analysis.conclusions import mark
    from patching.contrast import split_usable
    from patching.pairs import load_pairs
    from patching.preflight import preflight

    usable, _ = split_usable(load_pairs(settings.pairs.file))
    failed = []
    for check in preflight(settings.checkpoint, settings.remote, usable, settings.dtype):
        item = check._asdict()
        typer.echo(f"{mark(item):<7} {item['name']:<11} {printable(item['sentence'])}")
        failed += [item["name"]] if mark(item) == "FAILED" else []
    if failed:
        stop(f"{', '.join(failed)}: so no number from there can be trusted", FAILED)


@remote_app.command("submit")
def submit_remote(config: Config, out: Out = None) -> None:
    """Submit a run's jobs and come back; `codi remote collect` fetches what is there.

    The checks before the sweep are waited for. Given again, it submits what failed, and what is not there after
    remote.timeout seconds.
    """
    later(config, out, "submit")


@remote_app.command("collect")
def collect_remote(config: Config, out: Out = None) -> None:
    """Fetch the jobs of a submitted run that are finished; when all are, the run is too, and is reported."""
    later(config, out, "collect")


def later(config: Path, out: Path | None, what: Any) -> None:
    """Submit or collect a run's jobs, and report on the run once it is finished."""
    from configs import RunConfig, load_config

    settings = load_config(config, RunConfig, out=here(out), remote=True)
    if settings.remote is None or settings.remote.host == "local":
        raise ValueError(f"{config}: remote is not a deployment; set remote = true, or the table [remote]")
    from analysis import write_report
    from patching.experiment import InvariantError, run_experiment
    from traces.ledger import NotYet

    folder = settings.out or Path("runs", settings.name)
    if what == "collect" and not (folder / "jobs.json").is_file():
        raise ValueError(f"{folder}: no jobs were submitted for this run; codi remote submit {from_here(config)}")
    try:
        run_experiment(settings, folder, later=what)
    except InvariantError as error:
        stop(str(error), FAILED)
    except NotYet as state:
        typer.echo(f"{from_here(folder)}: {state} {from_here(config)}")
        return
    print_conclusions(folder, write_report(folder, progress=pair_bar))


@pairs_app.command("check")
def check_pairs(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON or JSONL: one object a pair, or two records.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Judge the pairs under this CODI checkpoint too.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole description as JSON.")] = False,
) -> None:
    """Describe a file of pairs, and judge which of them are a contrast.

    With a checkpoint, its tokenizer counts too, and both sides of each pair are answered. The exit code is 2 where the
    file is bad or a pair is not usable; `codi run` leaves out, and lists, pairs that are no contrast.
    """
    import json

    import traces  # torch only when a model is asked for
    from patching.contrast import judge
    from patching.describe import describe, summary_rows, verdict_rows
    from patching.pairs import PairsError, load_pairs

    try:
        pairs = load_pairs(file)
    except PairsError as error:
        refuse_pairs(file, error.problems, as_json)
    model = None if checkpoint is None else traces.load_codi(checkpoint, device, dtype)
    found = describe(pairs, judge(pairs, model, progress=True))
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        typer.echo(aligned(summary_rows(found)))
        if rows := verdict_rows(found["each"]):
            typer.echo("\n" + "\n".join(shortened(aligned(rows).splitlines(), "pairs", heads=1)))
    if problems := found["problems"]:
        count = f"{len(problems)} of {len(pairs)} pairs are not usable; the first is " if len(problems) > 1 else ""
        stop(f"{file}: {count}{problems[0]}", BAD_INPUT)


def refuse_pairs(file: Path, problems: Sequence[str], as_json: bool) -> NoReturn:
    """Say what is wrong with a file of pairs, a line for each problem."""
    import json

    if as_json:
        typer.echo(json.dumps({"problems": problems}, indent=2, ensure_ascii=False))
    for problem in shortened(problems, "problems"):
        typer.echo(f"codi: {printable(f'{from_here(file)}: {problem}')}", err=True)
    raise typer.Exit(BAD_INPUT)


@pairs_app.command("make")
def make_gsm8k_pairs(
    file: Annotated[
        Path, typer.Argument(metavar="GSM8K.jsonl", help="Questions with annotated solutions, one a line.")
    ],
    out: Annotated[Path, typer.Option(help="The file of pairs to write; JSON, or JSONL by its name.")],
    seed: Annotated[int, typer.Option(help="Draws the changes.")] = 0,
    per_question: Annotated[
        int, typer.Option(min=1, help="At most so many pairs of a question; they share a cluster.")
    ] = 1,
    delta: Annotated[list[int] | None, typer.Option(help="How a number may change, as 1 or -1; default any.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="first_operand, later_operand, operator_word; default all.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Keep changes of equal token count under its tokenizer.")
    ] = None,
) -> None:
    """Make verified pairs from GSM8K: one number or operator word changed, both answers computed.

    Each operand of the annotated solution is traced to the question, and the whole chain computed again exactly.
    """
    from traces.gsm8k import read_problems

    problems = read_problems(file)
    if out.resolve() == file.resolve():
        raise ValueError(f"{out}: is the file that the questions come from; choose another with --out")
    from patching.generate import KINDS, equal_tokens, make_pairs
    from patching.store import write_json

    fits = equal_tokens(str(checkpoint)) if checkpoint is not None else None
    records, funnel = make_pairs(
        problems, seed=seed, per_question=per_question, deltas=delta or (), kinds=kind or KINDS, fits=fits
    )
    if out.suffix == ".jsonl":
        write_lines(out, records)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, records)
    typer.echo(aligned([("", "count"), *funnel.lines()]))
    typer.echo(f"written to {from_here(out)}; look at them with: codi pairs check {from_here(out)}")


@pairs_app.command("arithmetic")
def arithmetic_pairs(
    out: Annotated[Path, typer.Option(help="The JSON file to write.")],
    checkpoint: Annotated[list[Path], typer.Option(help="Must answer both sides correctly; may be given repeatedly.")],
    seed: Annotated[int, typer.Option(help="Draws the problems.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many pairs.")] = 66,
) -> None:
    """Make pairs of arithmetic word problems.

    Each pair is answered correctly on both sides by every checkpoint named; the shipped file was made so.
    """
    from patching.arithmetic import make_pairs

    out.parent.mkdir(parents=True, exist_ok=True)
    make_pairs(checkpoint, count, seed, out)
    typer.echo(f"{count} pairs in {out}")


@app.command("eval")
def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[Path, typer.Option(help="Questions and answers: JSONL in GSM8K's form.")],
    steps: Annotated[list[int] | None, typer.Option(min=0, help="Only so many steps; may be given repeatedly.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="An answer's longest length.")] = 64,
    out: Annotated[Path | None, typer.Option(help="Write every answer there, as JSONL.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    remote: OnNdif = False,
) -> None:
    """Measure greedy accuracy, with the whole thought and with 0, 1, … of its steps.

    The answer is the last number that the model says; the interval is Wilson's.
    """
    from traces.gsm8k import read_problems

    problems = read_problems(data)[:limit]
    if out is not None and (out.suffix != ".jsonl" or out.resolve() == data.resolve()):
        raise ValueError(f"{out}: wanted another file than the data's, whose name ends in .jsonl")
    from analysis.inference import share_interval
    from traces import load_codi
    from traces.evaluate import score

    model = load_codi(checkpoint, device, dtype, remote)
    chosen = [*range(model.n_latents + 1)] if steps is None else sorted(set(steps))
    rows: list[list[str]] = []
    scored: list[Any] = []
    if out is not None:
        write_lines(out, [])  # refused before anything runs where it cannot be written
    for count in reversed(chosen):  # the whole thought first: it is what one waits for
        new = score(model, problems, count, batch_size=batch, max_new_tokens=max_new_tokens, progress=True)
        scored += new
        if out is not None:  # after each count, so that an interruption loses no finished one
            write_lines(out, (item._asdict() for item in scored))
        right = sum(item.correct for item in new)
        low, high = share_interval(right, len(new))
        trained = "as trained" if count == model.n_latents else ""
        rows.insert(
            0, [str(count), f"{right / len(new):.1%}", f"[{low:.1%}, {high:.1%}]", f"{right}/{len(new)}", trained]
        )
    typer.echo(aligned([["steps", "accuracy", "95 % interval", "correct", ""], *rows]))


@app.command()
def train(config: Config, out: Out = None) -> None:
    """Train a base, or a CODI model over one.

    The shipped checkpoints were made so; what the config's recipe says ends up in the checkpoint's codi.json.
    """
    from configs import TrainConfig, load_config

    settings = load_config(config, TrainConfig, out=here(out))
    if settings.base is not None and not (settings.base / "config.json").is_file():
        raise ValueError(f"{settings.base}: no base model there; train it first: codi train configs/train_base.toml")
    from traces.train import train

    def say(step: int, figures: dict) -> None:
        typer.echo(f"step {step:>6}  " + "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))

    train(settings, say)
    typer.echo(f"written to {from_here(settings.out)}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Upstream's output: a folder, a file or a Hub id.")],
    base: Annotated[str, typer.Option(help="The base that it was trained over: a folder or a Hub id.")],
    out: Annotated[Path, typer.Option(help="The checkpoint folder to write.")],
    alpha: Annotated[float | None, typer.Option(help="LoRA's alpha; 32 in the published checkpoints.")] = None,
    keep_base: Annotated[bool, typer.Option("--keep-base", help="Store its own base where it differs.")] = False,
    latents: Annotated[int, typer.Option(min=1, help="How many latent steps it was trained with.")] = 6,
    keep_eos: Annotated[bool, typer.Option("--keep-eos", help="Trained without upstream's remove_eos.")] = False,
) -> None:
    """Convert upstream CODI's weights into a checkpoint folder.

    Every tensor is used, found equal to the base's, or refused; rank, targets and projection are read off the tensors.
    """
    if alpha is not None and not 0 < alpha < inf:
        raise ValueError(f"--alpha is {alpha:g}, wanted a number above 0")
    from traces.convert import convert
    from traces.weights import ConversionError

    try:
        report = convert(
            source, base, out, alpha=alpha, keep_base=keep_base, n_latents=latents, remove_eos=not keep_eos
        )
    except ConversionError as error:
        print_parts(error.report)
        raise
    print_parts(report)
    typer.echo(f"written to {from_here(out)}; look at it with: codi check {from_here(out)} --pairs FILE")


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Holds the checkpoints thought and bypass.")],
    problems: Annotated[int, typer.Option(min=1, help="Fresh problems to measure accuracy on.")] = 1000,
    pairs: Annotated[int, typer.Option(min=1, help="Fresh pairs to draw.")] = 1000,
) -> None:
    """Measure the arithmetic checkpoints afresh and write their model card: how the shipped card was made."""
    from patching.card import write_card

    typer.echo(f"written to {write_card(folder, problems=problems, pairs=pairs)}")


@app.command()
def lens(
    checkpoint: Checkpoint,
    pairs: Annotated[Path, typer.Option(help="Pairs to read.", show_default="the shipped ones")] = SHIPPED_PAIRS,
    data: Annotated[Path | None, typer.Option(help="Instead of pairs: questions in GSM8K's form, JSONL.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pairs or questions.")] = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="So many of the likeliest tokens are kept.")] = 10,
    question: Annotated[
        str | None, typer.Option(metavar="ID", help='Whose thought is drawn, as "0 clean" or a line of the data.')
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws whose numbers are the chance level.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Questions read at once.")] = 16,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder; runs/lens-<checkpoint> if left out.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    remote: OnNdif = False,
) -> None:
    """Read what each latent says (logit lens) and what it attends to; find known numbers, beside the chance level.

    Tables, figures and a page; what a state says is not what it does, for which there is `codi run`.
    """
    from patching.worked import of_pairs, of_problems

    if data is not None and pairs != SHIPPED_PAIRS:
        raise ValueError("--pairs and --data are given, wanted one of them")
    if data is None:
        from patching.pairs import load_pairs

        worked = of_pairs(load_pairs(pairs)[:limit])
    else:
        from traces.gsm8k import read_problems

        worked = of_problems(read_problems(data)[:limit])
    if question is not None and question not in {each.question_id for each in worked}:
        raise ValueError(f"--question is {question!r}; the first of {len(worked)} is {worked[0].question_id!r}")
    from analysis.lens_page import write_lens_report
    from patching.lens import described_lens, lens_tables, open_folder, save_lens
    from traces import load_codi

    model = load_codi(checkpoint, device, dtype, remote)
    folder = open_folder(out or Path("runs", f"lens-{checkpoint.resolve().name}"))
    tables = lens_tables(model, worked, top=top, batch_size=batch, seed=seed, progress=True)
    save_lens(tables, folder, described_lens(model, data or pairs, worked, top, seed))
    print_lens(folder, write_lens_report(folder, question))


@app.command("score")
def score_dump(
    dump: Annotated[Path, typer.Argument(metavar="DUMP", help="Upstream's decoded_latent.txt, or one like it.")],
    top: Annotated[int, typer.Option(min=1, help="So many of the likeliest tokens count.")] = 5,
    seed: Annotated[int, typer.Option(help="Draws whose numbers are the chance level.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the table and the chart there.")] = None,
) -> None:
    """Score a published dump of decoded latents: how many solutions' intermediates it says, beside the chance level.

    The same matching as `codi lens`: a token counts where it equals the number, whatever its blanks.
    """
    from patching.dump import dump_tables, read_dump

    says, values = dump_tables(*read_dump(dump), seed=seed)
    from analysis.lens import decodable, match_tokens
    from analysis.lens_charts import OWNERS

    if top > (kept := int(says.groupby(["question_id", "step"])["rank"].max().min())):
        raise ValueError(
            f"{dump}: holds the {kept} likeliest tokens of each latent; --top can be 1 to {kept}, not {top}"
        )
    shares = decodable(match_tokens(says, values), top)
    wide = shares.pivot(index=["steps", "owner"], columns="measure", values=["share", "low", "high", "n"])
    rows = [
        [
            str(steps), OWNERS[owner], f"{row['share', 'all of them']:.1%}",
            "one cluster" if isnan(row["low", "all of them"])
            else f"[{row['low', 'all of them']:.1%}, {row['high', 'all of them']:.1%}]",
            f"{row['share', 'each of them']:.1%}", f"{row['n', 'all of them']:.0f}",
        ]
        for (steps, owner), row in zip(wide.index, wide.to_dict("records"), strict=True)
    ]  # fmt: skip
    heads = ["steps", "", "all said", "95 % interval", "each said", "n"]
    typer.echo(aligned([heads, *rows]))
    if out is not None:
        from analysis.export import save_figures
        from analysis.lens_charts import decodable_bars

        save_figures({"decodable": decodable_bars(shares).to_dict()}, out)
        shares.to_parquet(out / "decodable.parquet", index=False)
        typer.echo(f"\nTable and chart: {from_here(out)}")


def print_lens(folder: Path, page: Path) -> None:
    """Where the lens's page is, and what it says."""
    from analysis.lens_page import lens_sentences, read_lens

    typer.echo(f"\nPage: {from_here(page)}\n")
    print_paragraphs(lens_sentences(read_lens(folder)))


@app.command()
def ask(
    checkpoint: Checkpoint,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In quotes.")],
    device: Device = "auto",
    dtype: Dtype = "auto",
    remote: OnNdif = False,
) -> None:
    """Answer a question, and show each latent step's nearest tokens."""
    if not question.strip():
        raise ValueError("the question is empty; put one in quotes")
    from patching.pairs import format_number
    from traces import load_codi
    from traces.lens import ask

    asked = ask(load_codi(checkpoint, device, dtype, remote), question)
    number = "none" if isnan(asked.answer) else format_number(asked.answer)
    typer.echo(f"answer  {number}  (the model said: {asked.answer_text.strip()!r})\n")
    typer.echo(
        aligned([["step", "nearest tokens"], *([str(i), "  ".join(near)] for i, near in enumerate(asked.steps))])
    )


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write JSONL."""
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def print_parts(report: Sequence[Any]) -> None:
    """What became of a converted file's tensors, part by part."""
    if report:
        heads = ["tensors", "expected", "landed", "missing", "unexpected"]
        typer.echo(aligned([heads, *([part.part, *map(str, part[1:])] for part in report)]))


def modified(path: Path) -> int | None:
    """When a file was last written; None where there is none."""
    return path.stat().st_mtime_ns if path.is_file() else None


def here(path: Path | None) -> Path | None:
    """A path of the command line: relative to the current folder."""
    return None if path is None else path.resolve()


def pair_bar(pairs: Iterable[Any]) -> Iterable[Any]:
    """A progress bar over the pairs' figures; none where nobody watches."""
    from tqdm import tqdm

    return tqdm(pairs, desc="figures", unit="pair", disable=None)


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Rows as a text table, two blanks between columns, numbers to the right; the first row may be their heads."""
    columns = [list(map(printable, column)) for column in zip(*rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    numbers = [all(cell.rstrip("%").lstrip("-").replace(".", "").isdigit() for cell in c[1:]) for c in columns]
    padded = [
        [cell.rjust(width) if right else cell.ljust(width) for cell in column]
        for column, width, right in zip(columns, widths, numbers, strict=True)
    ]
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def shortened(lines: Sequence[str], what: str, heads: int = 0, most: int = 20) -> list[str]:
    """The first lines, and how many more there are."""
    rest = len(lines) - heads - most
    return [*lines[: heads + most], *([f"… and {rest} more {what}; --json lists all"] if rest > 0 else [])]


def print_conclusions(folder: Path, page: Path) -> None:
    """Where the report is, and what it concludes."""
    from analysis.conclusions import conclusions

    typer.echo(f"\nReport: {from_here(page)}\n")
    print_paragraphs(conclusions(folder))


def print_paragraphs(paragraphs: Iterable[Any]) -> None:
    """Sentences, and tables as rows of text."""
    for paragraph in paragraphs:
        typer.echo(paragraph if isinstance(paragraph, str) else aligned(paragraph))


def main() -> None:
    """The `codi` command."""
    app(prog_name="codi")


if __name__ == "__main__":
    main()

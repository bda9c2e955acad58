"""Log a finished run folder to Weights & Biases (optional): its config, one table, a few numbers, and its figures.

Everything logged is in the folder; nothing is measured here, and nothing about this machine is added.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from codi_tracing.analysis.report.finished_run import FinishedRun, read_run
from codi_tracing.analysis.statistics.results import Results

PROJECT = "cot-exploration"  # the original experiment's


def track(folder: Path | str | FinishedRun, mode: str, project: str = PROJECT, name: str | None = None) -> str:
    """Log a run and return its name there; with mode "offline", write files for `wandb sync` into its `wandb` folder.

    Needs the extra `tracking`, and for "online" a key stored by `wandb login` or in WANDB_API_KEY. Never asks at the
    keyboard. The client's errors are raised unchanged.
    """
    try:
        import wandb
    except ImportError:
        raise ValueError('is not installed; pip install "codi-tracing[tracking]"') from None
    run = read_run(folder)
    if mode == "online" and not wandb.api.api_key:
        raise ValueError('found no key; `wandb login`, set WANDB_API_KEY, or wandb = "offline"')
    name = name or default_name(run.manifest)
    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, disable_code=True, save_code=False, init_timeout=60.0,
        x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True,
        host="unnamed",
    )  # fmt: skip
    client = wandb.init(
        mode="online" if mode == "online" else "offline", project=project, name=name, dir=str(run.folder),
        settings=settings, config=run.manifest, reinit="create_new",
    )  # fmt: skip
    try:
        sites = run.results.once(site_effects)
        values = sites.astype(object).where(sites.notna(), None)
        client.log(
            {
                "sites": wandb.Table(columns=[str(name) for name in sites], data=[*values.to_numpy().tolist()]),
                **{f"figures/{path.stem}": wandb.Image(str(path)) for path in figures(run.folder)},
            }
        )
        for key, value in summary(run).items():
            client.summary[key] = value
    finally:
        client.finish()
    return name


def default_name(manifest: dict[str, Any]) -> str:
    """`<experiment>_<timestamp>`, as the original experiment named its runs."""
    digits = "".join(letter for letter in manifest.get("created") or "" if letter.isdigit())
    experiment = manifest.get("experiment") or "sweep"
    return f"{experiment}_{digits[:8]}_{digits[8:14]}" if len(digits) >= 14 else experiment


def figures(run: Path) -> list[Path]:
    """The pictures of the report, not those of single pairs."""
    return sorted((run / "charts" / "aggregate").glob("*.png"))


def site_effects(results: Results) -> pd.DataFrame:
    """Every site's transfer with interval, p and counts, as `sites.csv` has it; empty if none was measured."""
    return results.all_sites()


def summary(run: FinishedRun) -> dict[str, Any]:
    """The run's summary.json, flat, whether the invariants hold, and the mean transfer per direction and layer."""
    conclusions = run.results.summary
    invariants = [check["passed"] for check in run.checks if check["grade"] == "invariant"]
    numbers = {
        f"{name}/{key}": value
        for name, estimate in conclusions["verdict"]["numbers"].items()
        for key, value in estimate.items()
    }
    sites = run.results.once(site_effects)
    by_layer = {}
    if len(sites):
        layers = sites[sites["layer"].notna() & (sites["layer"] == sites["layer_last"])]
        means = layers.groupby(["direction", "layer"])["effect"].mean().reset_index()
        by_layer = {
            f"transfer/{row['direction']}/layer_{row['layer']}": row["effect"] for row in means.to_dict("records")
        }
    return {
        "verdict": conclusions["verdict"]["label"],
        "verdict_sentence": conclusions["sentences"][0],
        "invariants_hold": all(invariants),
        **{key: conclusions[key] for key in ("pairs", "answered_pairs", "clusters")},
        **numbers,
        **by_layer,
    }

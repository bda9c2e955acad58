"""A finished run folder to Weights & Biases: its config, one table, a few numbers, and its figures. Optional.

What is sent is what the folder holds; nothing is measured here, and nothing of this machine is added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from codi_tracing.analysis.io.run_folder import read_checks, read_manifest
from codi_tracing.analysis.io.table_file import read_table
from codi_tracing.analysis.rows import SERIES, main_protocol, plain
from codi_tracing.analysis.statistics.ceiling import LOW_CEILING
from codi_tracing.analysis.statistics.effects import by_site, specific_or_plain
from codi_tracing.analysis.statistics.verdict import verdict
from codi_tracing.analysis.table import SITE_KEYS

PROJECT = "cot-exploration"  # the original experiment's
METRIC = "logit_difference"


def track(run: Path | str, mode: str, project: str = PROJECT, name: str | None = None) -> str:
    """Send a run folder, or with mode "offline" write into its `wandb` folder what `wandb sync` sends; the run's name.

    Needs the extra `tracking`, and for "online" a key that `wandb login` has stored or WANDB_API_KEY holds. Never asks
    at the keyboard. Raises whatever the client raises: tracking is the caller's to lose.
    """
    try:
        import wandb
    except ImportError:
        raise ValueError('is not installed; pip install "codi-tracing[tracking]"') from None
    run = Path(run)
    manifest, checks = read_manifest(run), read_checks(run)
    table = read_table(run / "cells.parquet")
    if mode == "online" and not wandb.api.api_key:
        raise ValueError('found no key; `wandb login`, set WANDB_API_KEY, or wandb = "offline"')
    name = name or default_name(manifest)
    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, disable_code=True, save_code=False, init_timeout=60.0,
        x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True,
        host="unnamed",
    )  # fmt: skip
    client = wandb.init(
        mode="online" if mode == "online" else "offline", project=project, name=name, dir=str(run), settings=settings,
        config=manifest, reinit="create_new",
    )  # fmt: skip
    try:
        sites = site_effects(table)
        client.log(
            {
                "sites": wandb.Table(columns=[str(name) for name in sites], data=list(plain_values(sites))),
                **{f"figures/{path.stem}": wandb.Image(str(path)) for path in figures(run)},
            }
        )
        for key, value in summary(table, checks, manifest).items():
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


def site_effects(table: pd.DataFrame) -> pd.DataFrame:
    """Every site's pooled effect on the logit difference, with interval and counts; empty where none was measured."""
    rows = plain(main_protocol(table))
    try:
        return by_site(specific_or_plain(rows[rows["metric"] == METRIC])).drop(columns=["metric"])
    except ValueError:
        return pd.DataFrame(columns=[*SERIES, *SITE_KEYS, "effect", "low", "high", "n", "clusters"])


def summary(table: pd.DataFrame, checks: list[dict[str, Any]], manifest: dict[str, Any]) -> dict[str, Any]:
    """The verdict, both ceilings, how the checks went, and one mean effect per direction and layer."""
    low = (manifest.get("config") or {}).get("low_ceiling", LOW_CEILING)
    found = verdict(table, low)
    ceilings = {"denoising": found.denoising, "noising": found.noising}
    invariants = [check["passed"] for check in checks if check["grade"] == "invariant"]
    sites = site_effects(table)
    layers = sites[sites["layer"].notna() & (sites["layer"] == sites["layer_last"])]
    by_layer = layers.groupby(["direction", "layer"])["effect"].mean().reset_index()
    return {
        "verdict": found.label,
        "verdict_sentence": found.sentence,
        "invariants_hold": all(invariants),
        "pairs": int(table["pair_id"].nunique()),
        "clusters": int(table["cluster_id"].nunique()),
        **{f"ceiling/{name}": top.effect for name, top in ceilings.items() if top is not None},
        **{f"effect/{row['direction']}/layer_{row['layer']}": row["effect"] for row in by_layer.to_dict("records")},
    }


def plain_values(frame: pd.DataFrame) -> list[Iterable[Any]]:
    """Rows of Python's own values; what is missing is None, which the client can write."""
    return [[None if missing(value) else value for value in row] for row in frame.astype(object).to_numpy().tolist()]


def missing(value: Any) -> bool:
    return value is pd.NA or value is None or (isinstance(value, float) and math.isnan(value))

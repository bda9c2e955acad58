"""Convert upstream CODI's whole state dict into our checkpoint folder: every tensor used, compared, or refused.

Rank, targets, projection and special vectors are read off the tensors. What no tensor says (alpha, the number of
latents, whether EOS stands between the question and BoT) is given, and recorded in `codi.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from codi_tracing.traces.convert.upstream import (
    LORA_A,
    LORA_B,
    PREFIX,
    PROJECTION,
    SPECIAL,
    Base,
    Layout,
    account,
    differing,
    fault,
    load_base,
    lora_rank,
    special_rows,
    untied,
)
from codi_tracing.traces.convert.weights_file import WEIGHTS, ConversionError, Part, State, read_state
from codi_tracing.traces.model.checkpoint import ADAPTER, Card, CheckpointError, reason, write_card, write_tensors

LARGEST_ALPHA = 1e6
NOT_PLAIN = ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern")
ALPHA_FILES = ("adapter_config.json", "lora_config.json", "config.json")


def convert(
    source: str | Path,
    base: str | Path,
    out: Path,
    *,
    alpha: float | None = None,
    keep_base: bool = False,
    n_latents: int = 6,
    remove_eos: bool = True,
) -> list[Part]:
    """Convert `source` (a folder, a file or a Hub id) over `base` into the checkpoint folder `out`; returns the report.

    `keep_base` stores the state dict's own base weights where they differ from the base's. Raises `ConversionError`
    where a tensor is missing, unexpected, of another shape or of another base; then nothing is written.
    """
    out = out.resolve()
    if out == Path.cwd():
        raise CheckpointError(f"{out}: is the current folder, which cannot be replaced; choose another with --out")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(f"{out}: exists already; choose another folder with --out")
    weights = find_weights(str(source))
    state = read_state(weights)
    alpha, alpha_from = find_alpha(weights.parent, alpha)
    if not any(name.startswith(PREFIX) for name in state):
        first = min(state, default="none")
        raise ConversionError(
            f"{weights}: is no CODI state dict: none of its {len(state)} tensors is under {PREFIX!r}; "
            f"the first is {first}"
        )
    ground = load_base(str(base))
    state, wanted = untied(state, ground)
    report = account(set(state), wanted, special_rows(state, wanted, ground))
    if sentence := fault(state, wanted, ground) or contradiction(weights.parent, lora_rank(state, wanted)):
        raise ConversionError(f"{weights}: {sentence}", report)
    differ = differing(state, wanted, ground)
    if differ and not keep_base:
        raise ConversionError(
            f"{weights}: {len(differ)} of {report[0].expected} base tensors differ from those of {base}, the first is "
            f"{differ[0]}; name the base that it was trained over, or store its own weights with --keep-base",
            report,
        )
    for own in differ:
        if not torch.isfinite(state[wanted.base[own]]).all():
            raise ConversionError(f"{weights}: its own {own} holds NaN or infinity; take an earlier checkpoint", report)
    special = state[wanted.base[ground.embedding]][-SPECIAL:]
    card = Card(
        base="base" if differ else location(ground, out),
        n_latents=n_latents,
        remove_eos=remove_eos,
        dtype=str(special.dtype).removeprefix("torch."),
        revision=None if differ else ground.revision,
        provenance={
            "converted_from": weights.name if Path(source).exists() else f"{source}@{weights.parent.name}",
            "sha256": file_sha256(weights),
            "alpha": alpha,
            "alpha_from": alpha_from,
            "base_tensors": {"compared": report[0].expected, "own": len(differ)},
            "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        },
    )
    with whole_folder(out) as folder:
        if differ:
            write_base(folder / "base", state, wanted, ground)
        write_adapter(folder / ADAPTER, state, wanted, alpha, card.base)
        write_tensors(folder, {**{name: state[name] for name in PROJECTION}, "bot": special[1], "eot": special[2]})
        write_card(folder, card)
    return report


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes `out` when all is written, and vanishes where something fails."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as made:
        folder = Path(made, out.name)
        folder.mkdir()
        yield folder
        os.replace(folder, out)


def find_weights(source: str) -> Path:
    """The state dict's file: `source` itself, in the folder `source`, or in the Hub's repository of that name."""
    path = Path(source)
    if path.is_file():
        return path
    folder = path if path.is_dir() else fetch(source)
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{source}: holds neither {' nor '.join(WEIGHTS)}; give upstream CODI's output folder")


def fetch(repository: str) -> Path:
    """A Hub repository's weights and configs, from the local cache where they are there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if repository.startswith((".", "/", "~")) or repository.count("/") != 1:
        raise CheckpointError(f"{repository}: no such file or folder; give upstream CODI's output, or a Hub id")
    try:
        return Path(snapshot_download(repository, allow_patterns=[*WEIGHTS, *ALPHA_FILES]))
    except (OSError, HFValidationError) as error:
        raise CheckpointError(
            f"{repository}: is no file or folder here and not in the local Hugging Face cache ({reason(error)}); "
            f"fetch it once while online: hf download {repository}"
        ) from None


def configs_beside(folder: Path) -> dict[str, dict[str, Any]]:
    """The LoRA configs that lie beside the weights, by file name; refused where one is not plain LoRA."""
    found = {}
    for path in (folder / name for name in ALPHA_FILES):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (ValueError, RecursionError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read ({reason(error)}); mend it or take it away") from None
        if not isinstance(config, dict):
            continue
        if odd := [key for key in NOT_PLAIN if config.get(key)]:
            raise CheckpointError(f"{path}: {odd[0]!r} is {config[odd[0]]!r}, wanted plain LoRA, one alpha for all")
        found[path.name] = config
    return found


def find_alpha(folder: Path, given: float | None) -> tuple[float, str]:
    """LoRA's alpha and where it is from: `given`, or a config beside the weights; no two may disagree."""
    said = {"--alpha": given} if given is not None else {}
    for name, config in configs_beside(folder).items():
        if "lora_alpha" in config:
            alpha = config["lora_alpha"]
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < LARGEST_ALPHA:
                raise CheckpointError(f"{folder / name}: 'lora_alpha' is {str(alpha)[:20]}, wanted a number above 0")
            said[name] = float(alpha)
    if len(set(said.values())) > 1:
        two = " and ".join(f"{name} says {alpha:g}" for name, alpha in said.items())
        raise CheckpointError(f"{folder}: about LoRA's alpha, {two}; settle on one")
    if not said:
        raise CheckpointError(
            f"{folder}: no config beside the weights says LoRA's alpha, and no tensor can; "
            "give --alpha (32 for the published checkpoints)"
        )
    name, alpha = next(iter(said.items()))
    return alpha, name


def contradiction(folder: Path, rank: int) -> str | None:
    """What a config beside the weights says otherwise of LoRA's rank, as the end of a sentence."""
    for name, config in configs_beside(folder).items():
        if "r" in config and config["r"] != rank:
            return (
                f"its LoRA has rank {rank}, {name} beside it says {str(config['r'])[:20]}; they do not belong together"
            )
    return None


def location(ground: Base, out: Path) -> str:
    """The base as `codi.json` names it: a Hub id, or its folder relative to the checkpoint's."""
    return os.path.relpath(ground.name, out) if Path(ground.name).is_dir() else ground.name


def write_base(folder: Path, state: State, wanted: Layout, ground: Base) -> None:
    """Write the state dict's own base, without the special rows, and the tokenizer."""
    own = {name: state[there] for name, there in wanted.base.items() if there in state}
    for table in (ground.embedding, "lm_head.weight"):
        if table in own:
            own[table] = own[table][: ground.vocabulary]
    ground.lm.load_state_dict(own, strict=False, assign=True)
    ground.lm.tie_weights()
    ground.lm.save_pretrained(folder)
    ground.tokenizer.save_pretrained(folder)


def write_adapter(folder: Path, state: State, wanted: Layout, alpha: float, base: str) -> None:
    """Write the LoRA as a standard PEFT adapter."""
    from peft import LoraConfig

    config = LoraConfig(
        r=lora_rank(state, wanted),
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=sorted({name.rpartition(".")[2] for name in wanted.modules}),
        fan_in_fan_out=not isinstance(next(iter(wanted.modules.values())), nn.Linear),
        inference_mode=True,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    config.save_pretrained(str(folder))
    tensors = {
        f"base_model.model.{name}{side.replace('.default', '')}": state[f"{PREFIX}{name}{side}"].contiguous()
        for name in wanted.modules
        for side in (LORA_A, LORA_B)
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Convert upstream CODI's state dict into a checkpoint folder: every tensor is used, compared with the base or refused.

Rank, targets, projection and special vectors are read off the tensors. Alpha, the number of latents, and whether EOS
stands between the question and BoT are in no tensor: they are given, and recorded in `codi.json`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from codi_tracing.configs.files import LARGEST_CONFIG, read_utf8
from codi_tracing.traces.convert.upstream import (
    BASE_PREFIX,
    LORA_A,
    LORA_B,
    PROJECTION,
    SPECIAL,
    ConversionError,
    LoadedBase,
    PartCount,
    TensorNames,
    count_parts,
    differing,
    fault,
    load_base,
    lora_rank,
    with_embedding,
)
from codi_tracing.traces.model.checkpoint import ADAPTER, Card, CheckpointError, reason, write_card, write_tensors
from codi_tracing.traces.model.weight_files import MODEL_FILES, StateDict, read_state, weight_files
from codi_tracing.traces.records import parse_json

LARGEST_ALPHA = 1e6
ABANDONED = 600  # seconds after which an unfinished folder is what a killed process left
NOT_PLAIN = ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern")
SOURCE_PATTERNS = ("model*.safetensors", "pytorch_model*.bin", "*.index.json")
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
) -> list[PartCount]:
    """Convert `source` (a folder, a file or a Hub id) over `base` into the checkpoint folder `out`; returns the report.

    `keep_base` stores the state dict's own base weights where they differ from the base's. Raises `ConversionError` if
    a tensor is missing, unexpected, of another shape or of another base; then nothing is written.
    """
    out = out.resolve()
    if out == Path.cwd():
        raise CheckpointError(f"{out}: is the current folder, which cannot be replaced; choose another with --out")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(f"{out}: exists already; choose another folder with --out")
    files = find_weights(str(source))
    weights, state = files[0], read_state(files)
    alpha, alpha_from = find_alpha(weights.parent, alpha)
    if not any(name.startswith(BASE_PREFIX) for name in state):
        first = min(state, default="none")
        raise ConversionError(
            f"{weights}: is no CODI state dict: none of its {len(state)} tensors is under {BASE_PREFIX!r}; "
            f"the first is {first}"
        )
    loaded = load_base(str(base))
    state, names = with_embedding(state, loaded)
    report = count_parts(state, names, loaded)
    own = own_base_tensors(weights, state, names, loaded, report, keep_base)
    special = state[names.base[loaded.embedding]][-SPECIAL:]
    card = Card(
        base="base" if own else location(loaded, out),
        n_latents=n_latents,
        remove_eos=remove_eos,
        dtype=str(special.dtype).removeprefix("torch."),
        revision=None if own else loaded.revision,
        provenance={
            "converted_from": weights.name if Path(source).exists() else f"{source}@{weights.parent.name}",
            "sha256": files_sha256(files),
            "alpha": alpha,
            "alpha_from": alpha_from,
            "base_tensors": {"compared": report[0].expected, "own": len(own)},
            "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        },
    )
    with whole_folder(out) as folder:
        if own:
            write_base(folder / "base", state, names, loaded)
        write_adapter(folder / ADAPTER, state, names, alpha, card.base)
        write_tensors(folder, {**{name: state[name] for name in PROJECTION}, "bot": special[1], "eot": special[2]})
        write_card(folder, card)
    return report


def own_base_tensors(
    weights: Path, state: StateDict, names: TensorNames, base: LoadedBase, report: list[PartCount], keep_base: bool
) -> list[str]:
    """The base tensors whose values are the state dict's own; refuses a state dict that does not fit the base."""
    if sentence := fault(state, names, base) or contradiction(weights.parent, lora_rank(state, names)):
        raise ConversionError(f"{weights}: {sentence}", report)
    own = differing(state, names, base)
    if own and not keep_base:
        raise ConversionError(
            f"{weights}: {len(own)} of {report[0].expected} base tensors differ from those of {base.name}, the first "
            f"is {own[0]}; name the base that it was trained over, or store its own weights with --keep-base",
            report,
        )
    for name in own:
        if not torch.isfinite(state[names.base[name]]).all():
            raise ConversionError(
                f"{weights}: its own {name} holds NaN or infinity; take an earlier checkpoint", report
            )
    return own


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes `out` at the end, or is deleted after an error.

    What a killed process left there is deleted once it is old; until then it may be another process's.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.tmp")
    if folder.is_dir() and time.time() - folder.stat().st_mtime > ABANDONED:
        shutil.rmtree(folder)
    try:
        folder.mkdir()
    except FileExistsError:
        raise CheckpointError(
            f"{folder}: another process is writing {out.name}, or one was killed; wait for it, or delete this folder"
        ) from None
    try:
        yield folder
        os.replace(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def find_weights(source: str) -> list[Path]:
    """The state dict's file or shards: `source` itself, or in the folder or the Hub repository `source`."""
    path = Path(source)
    if path.is_file() and path.suffix != ".json":
        return [path]
    names = [path.name.removesuffix(".index.json")] if path.is_file() else list(MODEL_FILES)
    folder = path if path.is_dir() else path.parent if path.is_file() else fetch(source)
    if not (files := weight_files(str(folder), names)):
        either = " nor ".join(MODEL_FILES)
        raise CheckpointError(f"{source}: holds neither {either}, nor shards of them; give upstream CODI's output")
    return files


def fetch(repository: str) -> Path:
    """The folder of a Hub repository's weights and configs, from the local cache if they are in it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if repository.startswith((".", "/", "~")) or repository.count("/") != 1:
        raise CheckpointError(f"{repository}: no such file or folder; give upstream CODI's output, or a Hub id")
    try:
        return Path(snapshot_download(repository, allow_patterns=[*SOURCE_PATTERNS, *ALPHA_FILES]))
    except (OSError, HFValidationError) as error:
        raise CheckpointError(
            f"{repository}: is no file or folder here and not in the local Hugging Face cache ({reason(error)}); "
            f"fetch it once while online: hf download {repository}"
        ) from None


def configs_beside(folder: Path) -> dict[str, dict[str, Any]]:
    """The LoRA configs beside the weights, by file name; refused unless plain LoRA."""
    configs = {}
    for path in (folder / name for name in ALPHA_FILES):
        try:
            config = parse_json(read_utf8(path, LARGEST_CONFIG))
        except FileNotFoundError:
            continue
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read ({reason(error)}); repair or delete it") from None
        if not isinstance(config, dict):
            continue
        if odd := [key for key in NOT_PLAIN if config.get(key)]:
            raise CheckpointError(f"{path}: {odd[0]!r} is {config[odd[0]]!r}, expected plain LoRA, one alpha for all")
        configs[path.name] = config
    return configs


def find_alpha(folder: Path, given: float | None) -> tuple[float, str]:
    """LoRA's alpha and its source: `given`, or a config beside the weights; they may not disagree."""
    alphas = {"--alpha": given} if given is not None else {}
    for name, config in configs_beside(folder).items():
        if "lora_alpha" in config:
            alpha = config["lora_alpha"]
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < LARGEST_ALPHA:
                raise CheckpointError(f"{folder / name}: 'lora_alpha' is {str(alpha)[:20]}, expected a number above 0")
            alphas[name] = float(alpha)
    if len(set(alphas.values())) > 1:
        two = " and ".join(f"{name} says {alpha:g}" for name, alpha in alphas.items())
        raise CheckpointError(f"{folder}: about LoRA's alpha, {two}; settle on one")
    if not alphas:
        raise CheckpointError(
            f"{folder}: no config beside the weights gives LoRA's alpha, and no tensor can; "
            "give --alpha (32 for the published checkpoints)"
        )
    name, alpha = next(iter(alphas.items()))
    return alpha, name


def contradiction(folder: Path, rank: int) -> str | None:
    """The disagreement of a config beside the weights with LoRA's rank, as the end of a sentence."""
    for name, config in configs_beside(folder).items():
        if "r" in config and config["r"] != rank:
            return (
                f"its LoRA has rank {rank}, {name} beside it says {str(config['r'])[:20]}; they do not belong together"
            )
    return None


def location(base: LoadedBase, out: Path) -> str:
    """The base as `codi.json` names it: a Hub id, or its folder relative to the checkpoint's."""
    return os.path.relpath(base.name, out) if Path(base.name).is_dir() else base.name


def write_base(folder: Path, state: StateDict, names: TensorNames, base: LoadedBase) -> None:
    """Write the state dict's own base, without the special rows, and the tokenizer."""
    own = {name: state[stored] for name, stored in names.base.items() if stored in state}
    for table in (base.embedding, "lm_head.weight"):
        if table in own:
            own[table] = own[table][: base.vocabulary]
    base.lm.load_state_dict(own, strict=False, assign=True)
    base.lm.tie_weights()
    base.lm.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)


def write_adapter(folder: Path, state: StateDict, names: TensorNames, alpha: float, base: str) -> None:
    """Write the LoRA as a standard PEFT adapter."""
    from peft import LoraConfig

    config = LoraConfig(
        r=lora_rank(state, names),
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=sorted({name.rpartition(".")[2] for name in names.modules}),
        fan_in_fan_out=not isinstance(next(iter(names.modules.values())), nn.Linear),
        inference_mode=True,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    config.save_pretrained(str(folder))
    tensors = {
        f"base_model.model.{name}{side.replace('.default', '')}": state[f"{BASE_PREFIX}{name}{side}"].contiguous()
        for name in names.modules
        for side in (LORA_A, LORA_B)
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def files_sha256(paths: Sequence[Path]) -> str:
    """SHA-256 of the bytes of all files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()

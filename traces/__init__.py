"""Questions to thoughts: load a CODI model and run its latent loop under nnsight."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from traces.checkpoint import CheckpointError as CheckpointError
    from traces.lens import ask as ask
    from traces.lens import attention_of as attention_of
    from traces.lens import logit_lens as logit_lens
    from traces.model import CodiModel as CodiModel
    from traces.model import load_codi as load_codi
    from traces.thought import record as record

_HOME = {
    "CheckpointError": "checkpoint",
    "CodiModel": "model",
    "load_codi": "model",
    "ask": "lens",
    "attention_of": "lens",
    "logit_lens": "lens",
    "record": "thought",
}
__all__ = ["CheckpointError", "CodiModel", "ask", "attention_of", "load_codi", "logit_lens", "record"]


def __getattr__(name: str):
    """Import torch and nnsight only when something that needs them is asked for."""
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module 'traces' has no attribute {name!r}")
    return getattr(import_module(f"traces.{_HOME[name]}"), name)

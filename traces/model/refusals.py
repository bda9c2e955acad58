"""Errors of transformers, PEFT and the Hub as one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from codi_tracing.traces.model.checkpoint import CheckpointError, reason


@contextmanager
def refusing(what: str, base: str) -> Iterator[None]:
    """Raise any error of transformers, PEFT or the Hub while a base loads as a `CheckpointError` of one sentence.

    Their warnings and progress bars are switched off.
    """
    if sys.flags.optimize > 1:
        raise CheckpointError(f"{what}: Python runs without docstrings (-OO), which transformers needs; use -O")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        if os.path.isdir(base):
            raise CheckpointError(f"{what} {base} cannot be loaded ({reason(error)}); restore its files") from None
        raise CheckpointError(
            f"{what} {base} is no folder here and not in the local Hugging Face cache ({reason(error)}); "
            f"fetch it once while online: hf download {base}"
        ) from None
    except Exception as error:  # a damaged config makes the libraries raise anything
        raise CheckpointError(f"{what} {base} cannot be loaded ({reason(error)})") from error

"""The entry point of the command `codi`."""

from __future__ import annotations

import os
import sys

from codi_tracing.cli import checkpoints, pairs, remote, reports, run
from codi_tracing.cli.app import app

GROUPS = (run, reports, checkpoints)  # importing a group registers its commands
app.add_typer(pairs.pairs_app, name="pairs")
app.add_typer(remote.remote_app, name="remote")


def main() -> None:
    """Run the command line; without docstrings (`python -OO`), transformers cannot be imported, so with them."""
    if sys.flags.optimize > 1:
        words = [sys.executable, "-m", "codi_tracing", *sys.argv[1:]]
        os.execve(sys.executable, words, {**os.environ, "PYTHONOPTIMIZE": "1"})
    app(prog_name="codi")

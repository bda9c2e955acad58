"""The entry point of the command `codi`."""

from __future__ import annotations

from codi_tracing.cli import checkpoints, pairs, remote, reports, run
from codi_tracing.cli.app import app

GROUPS = (run, reports, checkpoints)  # importing a group registers its commands
app.add_typer(pairs.pairs_app, name="pairs")
app.add_typer(remote.remote_app, name="remote")


def main() -> None:
    """Run the command line."""
    app(prog_name="codi")

"""`python -m codi_tracing` is the command `codi`."""

from codi_tracing.cli.main import main

main()

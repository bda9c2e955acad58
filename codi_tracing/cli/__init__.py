"""The command `codi`: a module per group of commands."""

"""Where a session runs: this machine, or an NDIF deployment."""

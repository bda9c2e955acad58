"""What latent states decode to, as tables."""

"""Load a model that thinks in latent steps, and run its loop under nnsight."""

"""The latent loop: question, latent steps, answer; many cells in one forward."""

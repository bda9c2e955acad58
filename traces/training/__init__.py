"""Training of the shipped checkpoints, and the word problems they are trained on."""

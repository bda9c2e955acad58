"""A checkpoint folder, its checks, and the loaded model."""

"""What to run: TOML files and the schema that they are read with."""

from configs.schema import ConfigError, RunConfig, TrainConfig, load_config

__all__ = ["ConfigError", "RunConfig", "TrainConfig", "load_config"]

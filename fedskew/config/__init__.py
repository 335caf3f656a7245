"""One frozen, validated configuration: what can be set (`schema`) and where it comes from (`load`)."""

from fedskew.config.load import load_config, to_yaml
from fedskew.config.schema import Config, ConfigError

__all__ = ["Config", "ConfigError", "load_config", "to_yaml"]

"""From Flower's run configuration (declared keys, plain values) to fedskew's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedskew.config import Config, load_config


def config_from_run(run_config: Mapping[str, Any]) -> Config:
    """The configuration of a run started with `flwr run -c 'preset="…" set="…" …'`.

    `data-dir` and `output-dir` are short for `data.dir` and `run.output-dir`, and win over them.

    Raises:
        ConfigError: see `load_config`.
    """
    text = {key: str(run_config.get(key, "")) for key in ("preset", "config", "set", "data-dir", "output-dir")}
    config = load_config(text["preset"], file=text["config"], overrides=text["set"])
    if text["data-dir"]:
        config = replace(config, data=replace(config.data, dir=text["data-dir"], source="folder"))
    if text["output-dir"]:
        config = replace(config, run=replace(config.run, output_dir=text["output-dir"]))
    return config

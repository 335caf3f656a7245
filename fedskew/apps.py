"""The two apps as Flower runs them, in deployment and simulation: that of the nodes, and the coordinator's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedskew.config import Config, ConfigError, load_config
from fedskew.federation.client import handle_evaluate, handle_query, handle_train
from fedskew.federation.grids import LocalGrid
from fedskew.federation.server import FederatedRun
from fedskew.report.observers import observers_of
from fedskew.runs.folder import RunFolder
from fedskew.runs.resume import finished_message, is_finished, node_count, open_checkpoint, resume_config
from fedskew.site.mod import site_mod

log = logging.getLogger("flwr.fedskew.server")

KEYS = ("preset", "config", "set", "data-dir", "output-dir", "resume")


def config_from_run(run_config: Mapping[str, Any]) -> Config:
    """The configuration of a run started with `flwr run -c 'preset="…" set="…" …'`.

    `data-dir` and `output-dir` are short for `data.dir` and `run.output-dir`, and win over them. With `resume`, the
    preset is ignored: the run folder's own configuration is gone on with.

    Raises:
        ConfigError: see `load_config` and `resume_config`.
    """
    text = {key: str(run_config.get(key, "")) for key in KEYS}
    if text["resume"]:
        if text["output-dir"]:
            raise ConfigError(f"output-dir={text['output-dir']}, but a resumed run stays in its folder; leave it out")
        config = resume_config(Path(text["resume"]), file=text["config"], overrides=text["set"])
    else:
        config = load_config(text["preset"], file=text["config"], overrides=text["set"])
    if text["data-dir"]:
        config = replace(config, data=replace(config.data, dir=text["data-dir"], source="folder"))
    if text["output-dir"]:
        config = replace(config, run=replace(config.run, output_dir=text["output-dir"]))
    return config


def run_on(grid: Grid, run_config: Mapping[str, Any]) -> RunFolder:
    """Start or resume the run that Flower's run configuration describes, on a grid."""
    resume = str(run_config.get("resume", ""))
    return _run(grid, config_from_run(run_config), Path(resume) if resume else None)


def _run(grid: Grid, config: Config, resume: Path | None) -> RunFolder:
    return go_on(grid, config, resume) if resume else FederatedRun(grid, config, observers=observers_of(config)).run()


def go_on(grid: Grid, config: Config, path: Path) -> RunFolder:
    """Go on in a run folder from its last finished round; a finished run is left exactly as it is.

    Raises:
        RunFolderError: another process runs in it.
    """
    folder = RunFolder(path)
    if is_finished(path, config):
        log.info(finished_message(path, config))
        return folder
    observers = observers_of(config)
    with folder.locked():  # from before its checkpoint is read
        return FederatedRun(grid, config, folder, open_checkpoint(path)[1], observers=observers).run()


def make_client_app() -> ClientApp:
    """The ClientApp that simulation and deployment share: a node's work, and its site's say around it."""
    app = ClientApp(mods=[site_mod])
    app.train()(handle_train)
    app.evaluate()(handle_evaluate)
    app.query()(handle_query)
    return app


def simulate(run_config: Mapping[str, Any], nodes: int | None = None) -> RunFolder:
    """Run a federation of simulated nodes in this process, one node after the other.

    Args:
        run_config: as Flower's run configuration, see `config_from_run`.
        nodes: how many; None: as many as the run that is resumed has, else `DEFAULT_NODES`.

    Raises:
        ConfigError: another number than the run that is resumed has, or nodes that need data of their own.
    """
    resume = str(run_config.get("resume", ""))
    count = node_count(resume, nodes)
    return simulate_config(config_from_run(run_config), count, Path(resume) if resume else None)


def simulate_config(config: Config, nodes: int, resume: Path | None = None) -> RunFolder:
    """The same of a configuration that is there already.

    Args:
        resume: the run folder to go on in.

    Raises:
        ConfigError: nodes that need data of their own.
    """
    if config.data.clients == "own":
        raise ConfigError(
            "data.clients is own, but simulated nodes have no data of their own; set data.clients=partition, or "
            "connect nodes that have (docs/deployment.md)"
        )
    return _run(LocalGrid(make_client_app(), nodes), config, resume)

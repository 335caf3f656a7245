"""The in-process simulation: the same apps as `flwr run`, on a `LocalGrid`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedskew.config import ConfigError
from fedskew.federation.client import handle_evaluate, handle_query, handle_train
from fedskew.federation.local_grid import LocalGrid
from fedskew.federation.settings import config_from_run, run_on
from fedskew.runs.folder import RunFolder
from fedskew.runs.resume import node_count


def make_client_app() -> ClientApp:
    """The ClientApp that simulation and deployment share."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Train the model in the message on this node's data."""
        return handle_train(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """Evaluate the model in the message on this node's validation data."""
        return handle_evaluate(message, context)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        """Say what this node is called."""
        return handle_query(message, context)

    return app


def simulate(run_config: Mapping[str, Any], nodes: int | None = None) -> RunFolder:
    """Run a federation of simulated nodes in this process, one node after the other.

    Args:
        run_config: as Flower's run configuration, see `settings.config_from_run`.
        nodes: how many; None: as many as the run that is resumed has, else `DEFAULT_NODES`.

    Raises:
        ConfigError: another number than the run that is resumed has, or nodes that need data of their own.
    """
    count = node_count(str(run_config.get("resume", "")), nodes)
    if config_from_run(run_config).data.clients == "own":
        raise ConfigError(
            "data.clients is own, but simulated nodes have no data of their own; set data.clients=partition, or "
            "connect nodes that have (docs/deployment.md)"
        )
    return run_on(LocalGrid(make_client_app(), count), run_config)

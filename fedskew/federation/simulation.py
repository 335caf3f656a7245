"""The in-process simulation: the same apps as `flwr run`, on a `LocalGrid`."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedskew.config import Config
from fedskew.federation.client import handle_evaluate, handle_train
from fedskew.federation.local_grid import LocalGrid
from fedskew.federation.server import FederatedRun
from fedskew.runs.folder import RunFolder


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

    return app


def simulate(config: Config, nodes: int) -> RunFolder:
    """Run a federation of simulated nodes in this process, one node after the other."""
    return FederatedRun(LocalGrid(make_client_app(), nodes), config).run()

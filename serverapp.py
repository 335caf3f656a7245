"""Flower ServerApp: the coordinator's side. The work is in `fedskew.federation.server`."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedskew.federation.server import FederatedRun
from fedskew.federation.settings import config_from_run

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run configuration describes."""
    FederatedRun(grid, config_from_run(context.run_config)).run()

"""Flower ServerApp: the coordinator's side. The work is in `fedskew.federation.server`."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedskew.apps import run_on
from fedskew.console import in_flower

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run configuration describes."""
    with in_flower():
        run_on(grid, context.run_config)

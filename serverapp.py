"""Flower ServerApp: the coordinator's side. The work is in `fedskew.federation.server`."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedskew.apps import run_on
from fedskew.console import in_flower
from fedskew.plugins import load_plugins

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run configuration describes."""
    with in_flower():
        load_plugins(app=Path(__file__).resolve().parent)
        run_on(grid, context.run_config)

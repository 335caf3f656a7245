"""`python -m fedskew`: the same as the `fedskew` command."""

from fedskew.cli.main import app

app(prog_name="fedskew")

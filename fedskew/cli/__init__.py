"""The `fedskew` command."""

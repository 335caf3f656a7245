"""The run folder: what a run leaves behind, how it goes on, and how runs are compared."""

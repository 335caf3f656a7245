"""A run as a page that a person opens: what it says, its figures, and who else is told of a run's rounds."""

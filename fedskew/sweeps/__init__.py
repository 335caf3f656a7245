"""Studies of many runs: planning, running and going on with them, their tables and their records."""

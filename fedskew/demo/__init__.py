"""Generated data in the shape of HAM10000, for demonstrations and tests; no hospital needs it."""

"""Ray actors, one class per file, the pool that runs them, and their placement."""

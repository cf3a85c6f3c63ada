"""Graph-to-graph passes, one per file, and the last steps from graph to program."""

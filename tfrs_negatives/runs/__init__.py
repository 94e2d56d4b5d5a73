"""A configuration to a run folder: train, evaluate, index, mine, recommend."""

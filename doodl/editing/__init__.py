"""Photos edited and inverted: the objective, where it starts, its rivals and the guard."""

"""How the pocket model is trained and measured; `python -m doodl.pocket.train` runs it."""

"""How far two pictures are apart, and how sure a figure is."""

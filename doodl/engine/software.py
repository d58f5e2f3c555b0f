"""The software's own name and version, as it signs files with."""

__version__ = "0.1.0"

SOFTWARE = f"doodl-batch {__version__}"
"""What files say that they were edited with, and rows' tables that they were made with."""

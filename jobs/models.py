"""`models list`: what can be used here, and why or why not."""

from __future__ import annotations

from jobs import console, exits
from pipeline.models import known_models


def show_models(*, as_json: bool) -> int:
    """Print the known models and return an exit code."""
    models = known_models()
    if as_json:
        console.print_json([model.__dict__ for model in models])
    else:
        rows = [(m.name, m.state, m.size, m.licence, m.note) for m in models]
        console.print_table("Models", ("name", "state", "size", "licence", "note"), rows)
    return exits.OK

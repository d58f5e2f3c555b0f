"""`models list`, `pull` and `check`: what can be used here, getting it, and whether it is sound."""

from __future__ import annotations

import sys

from jobs import console, exits
from pipeline.models import check_model, known_models, plan_pull, pull


def show_models(*, as_json: bool) -> int:
    """Print the known models and return an exit code."""
    models = known_models()
    if as_json:
        console.print_json([model.__dict__ for model in models])
    else:
        rows = [(m.name, m.state, m.size, m.licence, m.note) for m in models]
        console.print_table("Models", ("name", "state", "size", "licence", "note"), rows)
    return exits.OK


def pull_model(name: str, *, yes: bool, fp16: bool, revision: str | None) -> int:
    """Show a model's size and licence, ask, download it; return an exit code."""
    plan = plan_pull(name, revision=revision, fp16=fp16)
    console.print_facts(
        plan.source,
        {
            "repository": plan.repository,
            "revision": plan.revision + ("" if plan.pinned else " (its latest, not pinned)"),
            "size": f"{plan.size_bytes / 1e6:,.1f} MB in {len(plan.files)} files",
            "licence": plan.licence,
            "limits": plan.limits,
        },
    )
    if not yes and not _agreed():
        console.say("nothing pulled")
        return exits.OK
    console.result(f"pulled: {pull(plan)}")
    return exits.OK


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise exits.UsageError("nobody to ask here; say --yes to agree to the licence and pull.")
    console.say("Download it and keep to its licence? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def show_check(model: str, *, as_json: bool) -> int:
    """Print what a check of a model found and return an exit code."""
    facts = check_model(model)
    if as_json:
        console.print_json(facts)
        return exits.OK
    checked = "loaded and run once" if facts.pop("loaded") else "shapes only: too large for memory"
    facts["size_bytes"] = f"{facts['size_bytes'] / 1e6:,.1f} MB"
    console.print_facts(model, {"checked": checked, **facts})
    return exits.OK

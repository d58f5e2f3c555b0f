"""The direction of the imports: manifests and doodl know nobody, pipeline both, jobs pipeline."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"doodl", "manifests", "pipeline", "jobs"}
FORBIDDEN = {
    "manifests": {"torch", "ray", "doodl", "pipeline", "jobs", "PIL", "typer", "rich"},
    "doodl": {"ray", "pyarrow", "manifests", "pipeline", "jobs", "typer", "rich"},
    "pipeline": {"jobs", "typer", "rich"},
    "jobs": {"doodl", "torch", "ray"},
}
# Exit codes are made from the errors of every layer.
ALLOWED = {("jobs/exits.py", "doodl"), ("jobs/cli.py", "doodl")}
# The workers' calls, the cluster's job API, and the figures that workers show.
RAY_MODULES = [
    "pipeline/cluster.py",
    "pipeline/connection.py",
    "pipeline/metrics.py",
    "pipeline/submission.py",
]

# Circles of modules that import each other, still to be undone.
KNOWN_CIRCLES = [
    {"jobs.cli", "jobs.schedule.actions", "jobs.schedule.airflow", "jobs.schedule.command",
     "jobs.schedule.commands", "jobs.schedule.cron", "jobs.schedule.entries",
     "jobs.schedule.kuberay", "jobs.schedule.render"},
    {"pipeline.generating", "pipeline.inverting", "pipeline.protecting", "pipeline.stages",
     "pipeline.tasks"},
    {"pipeline.inputs", "pipeline.prompts"},
    {"pipeline.preflight", "pipeline.submission"},
    {"pipeline.recording", "pipeline.run"},
]  # fmt: skip


def modules():
    """Return {dotted name: file} of our four packages."""
    named = {}
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def modules_imported(path, known):
    """Return our modules that a file imports anywhere: in a function and for types alone too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in inner}
    return found & known.keys()


def circles(imports):
    """Return the sets of modules each of which leads to every other, of a {module: imported}."""

    def reached(start):
        seen, left = set(), [start]
        while left:
            new = imports[left.pop()] - seen
            seen |= new
            left += new
        return seen

    leads_to = {name: reached(name) for name in imports}
    found = []
    for name, ahead in leads_to.items():
        circle = {other for other in ahead if name in leads_to[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


def test_circles_are_found():
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": set(), "f": {"f"}}
    assert circles(imports) == [{"a", "b", "c"}, {"f"}]


def test_no_new_circle_of_imports():
    named = modules()
    found = circles({name: modules_imported(path, named) for name, path in named.items()})
    new = [c for c in found if not any(c <= known for known in KNOWN_CIRCLES)]
    assert new == []
    assert all(any(c <= known for c in found) for known in KNOWN_CIRCLES), "one is gone: unlist it"


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", sorted(OURS))
def test_package_imports_only_what_its_layer_may(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = [
        (name, module)
        for path in files
        for name in [path.relative_to(ROOT).as_posix()]
        for module in imports_of(path)
        if module in FORBIDDEN[package] and (name, module) not in ALLOWED
    ]
    assert wrong == []


def test_ray_is_known_to_four_modules_only():
    users = sorted(
        path.relative_to(ROOT).as_posix()
        for package in OURS
        for path in (ROOT / package).rglob("*.py")
        if "ray" in imports_of(path)
    )
    assert users == RAY_MODULES


def loaded_by(code):
    probe = f"import sys\n{code}\nprint(*sorted(m.split('.')[0] for m in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import doodl, doodl.recipes.config, doodl.models.revisions, doodl.errors",
        "from jobs.cli import app",
        "import pipeline.spec, pipeline.plan, pipeline.run, pipeline.stages",
    ],
)
def test_planning_and_help_load_neither_torch_nor_ray(code):
    assert not loaded_by(code) & {"torch", "ray", "diffusers", "open_clip", "transformers"}


def test_help_loads_no_arrow():
    assert "pyarrow" not in loaded_by("from jobs.cli import app")


@pytest.mark.parametrize("folder", ["docs", "README.md", "doodl/pocket/weights/MODEL_CARD.md"])
def test_modules_that_the_documents_name_are_there(folder):
    pages = [ROOT / folder] if folder.endswith(".md") else sorted((ROOT / folder).glob("*.md"))
    named = {
        (page.name, name)
        for page in pages
        for name in re.findall(r"\bpython -m ([a-z_.]+)", page.read_text())
        if name.split(".")[0] in {*OURS, "tests"}
    }
    assert [each for each in named if importlib.util.find_spec(each[1]) is None] == []

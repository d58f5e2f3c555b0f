"""The lines of shell that a cluster runs for us: the job itself, and the look before it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from pipeline.shared import MissingPathError
from pipeline.spec import version


def probe_command(paths: Sequence[str]) -> str:
    """Return a line of shell that fails, and says so for `parse_problem`, if a path is missing."""
    checks = []
    for path in paths:
        # %s and not the text itself: a path may hold anything.
        said = MissingPathError(path, "NODE").problem_line().replace('"NODE"', '"%s"')
        before, after = said.split('"%s"')
        checks.append(
            f"if [ ! -e {shlex.quote(path)} ]; then printf '%s\"%s\"%s\\n' {shlex.quote(before)} "
            f'"$(uname -n)" {shlex.quote(after)}; exit 6; fi'
        )
    return "; ".join(checks)


def entrypoint(
    arguments: Sequence[str], candidates: Sequence[str], ray_version: str, *, in_image: bool
) -> str:
    """Return the line of shell that runs `doodl-batch run ARGUMENTS` with the right interpreter.

    Ray runs it in a shell whose `python` may be any: the one taken is the first of our Python's
    minor version that has the cluster's Ray (and, `in_image`, this version of doodl-batch).
    """
    python = ".".join(map(str, sys.version_info[:2]))
    wanted = {"ray": ray_version, **({"doodl-batch": version()} if in_image else {})}
    check = (
        "import sys, importlib.metadata as m; "
        f"sys.exit(sys.version_info[:2] != {sys.version_info[:2]} or "
        f"any(m.version(n) != v for n, v in {wanted}.items()))"
    )
    having = " and ".join(f"{name} {number}" for name, number in wanted.items())
    lacking = (
        f"error: the cluster's head has no Python {python} with {having} on its PATH; "
        "name it as py_executable in a --runtime-env file."
    )
    run = " ".join(shlex.quote(text) for text in ["-m", "jobs.cli", "run", *arguments])
    return (
        f"for python in {' '.join(candidates)}; do "
        f'if command -v "$python" >/dev/null 2>&1 && '
        f'"$python" -c {shlex.quote(check)} >/dev/null 2>&1; then '
        f'exec "$python" {run}; fi; done; '
        f"echo {shlex.quote(lacking)}; exit 6"
    )

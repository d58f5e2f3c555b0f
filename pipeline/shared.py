"""What the submitting machine, the driver and every worker must all see: storage they share."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from manifests.paths import local_path
from pipeline.errors import UnusableEnvironmentError
from pipeline.spec import JobSpec

PROBLEM = "doodl-batch-problem:"
"""Begins the line by which a job tells a program, in JSON, what its node lacks."""


def in_ray_job() -> bool:
    """Return whether this process is the driver of a job that Ray's job server started."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def shared_paths(spec: JobSpec) -> list[str]:
    """Return the paths that every node must have: OUT, photos, subjects, masks, the model's folder.

    What is named by URI (`s3://…`) is shared as it is. A model that is no path is found in each
    node's own hub cache.
    """
    photos = [spec.photos] if spec.photos else []
    model = [spec.model] if Path(spec.model).is_absolute() else []
    masks = [spec.protect] if spec.protect else []
    paths = [spec.out, *photos, *spec.subjects, *masks, *model]
    return [path for path in paths if local_path(path) is not None]


def check_shared(paths: list[str]) -> None:
    """Raise UnusableEnvironmentError if this node does not have one of the paths."""
    for path in paths:
        if not Path(path).exists():
            raise MissingPathError(path, socket.gethostname())


class MissingPathError(UnusableEnvironmentError):
    """A node of the cluster does not have a path of the job."""

    def __init__(self, path: str, node: str) -> None:
        super().__init__(path, node)  # so that it pickles, as it must from a worker
        self.path, self.node = path, node

    def __str__(self) -> str:
        return (
            f"{self.path} does not exist on the cluster's node {self.node}; photos, output and "
            "model must lie on storage that this machine and all nodes mount at the same path."
        )

    def problem_line(self) -> str:
        """Return the line that `parse_problem` reads."""
        return f"{PROBLEM} {json.dumps({'missing': self.path, 'node': self.node})}"


def parse_problem(logs: str) -> MissingPathError | None:
    """Return what a job's logs say that its node lacks, None if they say nothing of the kind."""
    for line in logs.splitlines():
        if line.startswith(PROBLEM):
            try:
                said = json.loads(line[len(PROBLEM) :])
                return MissingPathError(str(said["missing"]), str(said["node"]))
            except (ValueError, KeyError, TypeError):
                continue
    return None

"""What Kubernetes is asked for, and the names and amounts it takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

from jobs.exits import UsageError
from pipeline.errors import UnusableEnvironmentError

_DNS_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
# KubeRay takes 47 characters for a RayJob: 18 are the prefix and what generateName appends.
_SHORT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,27}[a-z0-9])?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")


@dataclass(frozen=True)
class ClusterOptions:
    """What Kubernetes is asked for.

    Attributes:
        image: has doodl-batch and Ray installed. volumes: `CLAIM:/mount`, the photos' and OUT's.
        gpus, cpus, memory: of a worker. max_workers: pods at most.
        deadline_seconds: a night's end, whatever is left. starting_deadline_seconds: how late a
            night may still begin. backoff_limit: tries after a fault of the cluster.
        secret: a Secret whose entries become variables (tokens). ray_version: the image's.
    """

    image: str
    volumes: tuple[str, ...]
    namespace: str = "default"
    service_account: str | None = None
    gpus: int = 1
    cpus: str = "4"
    memory: str = "16Gi"
    max_workers: int = 1
    deadline_seconds: int = 12 * 3600
    starting_deadline_seconds: int = 3600
    backoff_limit: int = 1
    time_zone: str | None = None
    secret: str | None = None
    python: str = "python"
    ray_version: str | None = None

    def __post_init__(self) -> None:
        for option, value in (("--cpus", self.cpus), ("--memory", self.memory)):
            if not _QUANTITY.fullmatch(value):
                raise UsageError(f"{option} {value!r} must be a quantity such as 4, 500m or 16Gi.")
        for name in ("max_workers", "deadline_seconds", "starting_deadline_seconds"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1.")
        if self.starting_deadline_seconds < 10:
            raise UsageError("--starting-deadline-seconds below 10 may never start anything.")
        for name in ("gpus", "backoff_limit"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name.replace('_', '-')} must not be negative.")
        for given in (self.namespace, self.service_account, self.secret):
            if given is not None and not _DNS_NAME.fullmatch(given):
                raise UsageError(f"{given!r} is no name of anything in Kubernetes.")
        for volume in self.volumes:
            claim_of(volume)


def short_name(name: str) -> str:
    """Return a schedule's name. Raises: UsageError if Kubernetes cannot build its names on it."""
    if not _SHORT_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for Kubernetes: at most 29 lower-case letters, digits and '-', "
            "with a letter or a digit at both ends; choose another with --name."
        )
    return name


def claim_of(volume: str) -> tuple[str, str]:
    """Return (claim, mount path) of `CLAIM:/mount`."""
    claim, colon, path = volume.partition(":")
    if not colon or not path.startswith("/") or ".." in path.split("/") or ":" in path:
        raise UsageError(f"--pvc {volume!r} must be CLAIM:/path, as photos:/data.")
    if not _DNS_NAME.fullmatch(claim):
        raise UsageError(f"--pvc {volume!r}: {claim!r} is no name of a claim.")
    return claim, path.rstrip("/") or "/"


def ray_version() -> str:
    """Return the version of this machine's Ray. Raises: UnusableEnvironmentError without one."""
    try:
        return metadata.version("ray")
    except metadata.PackageNotFoundError:
        raise UnusableEnvironmentError(
            "Ray is not installed here, so its version is unknown; say it with --ray-version."
        ) from None

"""A nightly run on Kubernetes: a plain CronJob whose pod creates a KubeRay RayJob and sees it end.

The pod waits for the RayJob: only so does `concurrencyPolicy: Forbid` mean that nights do not
overlap, and the Job's state is the run's. Workers are scaled from none: a night with nothing to
do starts no accelerator.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from jobs.exits import UsageError
from jobs.schedule.cluster_options import ClusterOptions, claim_of, ray_version, short_name
from jobs.schedule.command import Command
from jobs.schedule.expression import Expression

LABEL = "doodl-batch/schedule"
RAYJOB_FILE = "/etc/doodl-batch/rayjob.json"
# The pod that creates the RayJob outlives it by this.
_GRACE_SECONDS = 900
# Ended by itself in a way that another try tonight would not better: `jobs.exits`.
_FINAL_EXITS = [2, 3, 4, 7, 8]

# `ray job submit` quotes the entrypoint's words for Windows and has a shell read them, so that
# $, `, \ and quotes inside a word would not arrive as they are.
_SAFE_WORD = re.compile(r"[\w@%+=:,./ -]*")


def manifests(
    command: Command, name: str, expression: Expression, options: ClusterOptions
) -> list[dict[str, Any]]:
    """Return the objects to apply: account, role, binding, the RayJob in a ConfigMap, the CronJob.

    Raises: UsageError for what no volume holds, or what cannot be passed to a cluster.
    """
    short_name(name)
    for path in (command.photos, command.out):
        _require_mounted(path, options.volumes)
    full = f"doodl-batch-{name}"
    account = options.service_account or full
    rayjob = ray_job(command, name, options)
    objects = [
        _object("v1", "ServiceAccount", account, options),
        _object(
            "rbac.authorization.k8s.io/v1", "Role", full, options,
            rules=[
                {"apiGroups": ["ray.io"], "resources": ["rayjobs"],
                 "verbs": ["create", "get", "list", "delete"]}
            ],
        ),
        _object(
            "rbac.authorization.k8s.io/v1", "RoleBinding", full, options,
            subjects=[
                {"kind": "ServiceAccount", "name": account, "namespace": options.namespace}
            ],
            roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": full},
        ),
        _object(
            "v1", "ConfigMap", full, options, data={"rayjob.json": json.dumps(rayjob, indent=1)}
        ),
        _cron_job(name, full, account, expression, options),
    ]  # fmt: skip
    return objects[1:] if options.service_account else objects


def ray_job(command: Command, name: str, options: ClusterOptions) -> dict[str, Any]:
    """Return the RayJob that one night is; every night gets its own, by `generateName`."""
    words = [options.python, *command.argv(options.python)[1:]]
    for word in words:
        if not _SAFE_WORD.fullmatch(word) or word.startswith(" ") or word.endswith(" "):
            raise UsageError(
                f"{word!r} cannot be handed to `ray job submit` unharmed; use letters, digits, "
                "spaces and @%+=:,./- only, or say it in a manifest."
            )
    pod_options: dict[str, Any] = {"volumeMounts": _mounts(options), "env": _env(command)}
    if options.secret is not None:
        pod_options["envFrom"] = [{"secretRef": {"name": options.secret}}]
    worker = {"cpu": options.cpus, "memory": options.memory}
    if options.gpus:
        worker["nvidia.com/gpu"] = str(options.gpus)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "generateName": f"doodl-batch-{name}-",
            "namespace": options.namespace,
            "labels": {LABEL: name},
        },
        "spec": {
            "entrypoint": shlex.join(words),
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 300,
            "activeDeadlineSeconds": options.deadline_seconds,
            # The same rows would fail again; what another night may better, another night tries.
            "backoffLimit": 0,
            "rayClusterSpec": {
                "rayVersion": options.ray_version or ray_version(),
                "enableInTreeAutoscaling": True,
                "headGroupSpec": {
                    # No worker on the head: it only plans and writes the tables.
                    "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                    "template": _pod(
                        "ray-head", {"cpu": "2", "memory": "8Gi"}, options, pod_options
                    ),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": 0,
                        "minReplicas": 0,
                        "maxReplicas": options.max_workers,
                        "rayStartParams": {},
                        "template": _pod("ray-worker", worker, options, pod_options),
                    }
                ],
            },
        },
    }


def _cron_job(
    name: str, full: str, account: str, expression: Expression, options: ClusterOptions
) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "schedule": expression.portable(),
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": options.starting_deadline_seconds,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 7,
        "jobTemplate": {
            "metadata": {"labels": {LABEL: name}},
            "spec": {
                "backoffLimit": options.backoff_limit,
                "activeDeadlineSeconds": options.deadline_seconds + _GRACE_SECONDS,
                "podFailurePolicy": {
                    "rules": [
                        {
                            "action": "FailJob",
                            "onExitCodes": {
                                "containerName": "create", "operator": "In",
                                "values": _FINAL_EXITS,
                            },
                        },
                        {
                            "action": "Ignore",
                            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                        },
                    ]
                },
                "template": {
                    "metadata": {"labels": {LABEL: name}},
                    "spec": {
                        "serviceAccountName": account,
                        "restartPolicy": "Never",
                        "containers": [
                            {
                                "name": "create",
                                "image": options.image,
                                "command": [
                                    options.python, "-P", "-m", "jobs.schedule.rayjob", RAYJOB_FILE
                                ],
                                "resources": {
                                    "requests": {"cpu": "100m", "memory": "256Mi"},
                                    "limits": {"memory": "512Mi"},
                                },
                                "volumeMounts": [
                                    {
                                        "name": "rayjob", "readOnly": True,
                                        "mountPath": str(PurePosixPath(RAYJOB_FILE).parent),
                                    }
                                ],
                            }
                        ],
                        "volumes": [{"name": "rayjob", "configMap": {"name": full}}],
                    },
                },
            },
        },
    }  # fmt: skip
    if options.time_zone is not None:
        spec["timeZone"] = options.time_zone
    return _object("batch/v1", "CronJob", full, options, spec=spec)


def _object(
    version: str, kind: str, name: str, options: ClusterOptions, **content: Any
) -> dict[str, Any]:
    meta = {"name": name, "namespace": options.namespace}
    return {"apiVersion": version, "kind": kind, "metadata": meta, **content}


def _pod(
    container: str,
    resources: Mapping[str, str],
    options: ClusterOptions,
    content: Mapping[str, Any],
) -> dict[str, Any]:
    volumes = [
        {"name": f"volume-{i}", "persistentVolumeClaim": {"claimName": claim_of(volume)[0]}}
        for i, volume in enumerate(options.volumes)
    ]
    return {
        "spec": {
            "containers": [
                {
                    "name": container,
                    "image": options.image,
                    # Ray goes by the limits; as requests, nothing is taken twice.
                    "resources": {"requests": dict(resources), "limits": dict(resources)},
                    **content,
                }
            ],
            "volumes": volumes,
        }
    }


def _mounts(options: ClusterOptions) -> list[dict[str, Any]]:
    return [
        {"name": f"volume-{i}", "mountPath": claim_of(volume)[1]}
        for i, volume in enumerate(options.volumes)
    ]


def _env(command: Command) -> list[dict[str, str]]:
    usage = {"RAY_USAGE_STATS_ENABLED": "0"}
    return [{"name": k, "value": v} for k, v in {**usage, **command.environment}.items()]


def _require_mounted(path: str, volumes: Sequence[str]) -> None:
    for volume in volumes:
        if PurePosixPath(path).is_relative_to(claim_of(volume)[1]):
            return
    raise UsageError(
        f"{path} lies on no volume of the cluster's pods; name the claim that holds it and where "
        "it is mounted there: --pvc CLAIM:/path"
    )

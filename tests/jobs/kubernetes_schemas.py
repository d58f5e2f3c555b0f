"""Strict checks of Kubernetes objects: no unknown field, every required one, every type.

Kubernetes' own kinds are checked against the models of its official Python client, which are made
from the API's OpenAPI document. RayJob is no kind of its own: `RAY_JOB` is a reduced schema of
KubeRay's custom resource, written down from ray-operator/apis/ray/v1/rayjob_types.go and
raycluster_types.go of github.com/ray-project/kuberay (v1 API), whose generated CRD has the same
fields; pod templates in it are checked as Kubernetes' own.
"""

from __future__ import annotations

import re
from typing import Any

from kubernetes import client

KINDS = {
    "ServiceAccount": client.V1ServiceAccount,
    "ConfigMap": client.V1ConfigMap,
    "Role": client.V1Role,
    "RoleBinding": client.V1RoleBinding,
    "CronJob": client.V1CronJob,
}
POD_TEMPLATE = "V1PodTemplateSpec"
_TEXT, _INT, _BOOL = str, int, bool
_MAP = {"*": str}

RAY_CLUSTER: dict[str, Any] = {
    "rayVersion": _TEXT,
    "enableInTreeAutoscaling": _BOOL,
    "autoscalerOptions": {
        "resources": client.V1ResourceRequirements, "image": _TEXT, "imagePullPolicy": _TEXT,
        "env": [client.V1EnvVar], "envFrom": [client.V1EnvFromSource],
        "volumeMounts": [client.V1VolumeMount], "securityContext": client.V1SecurityContext,
        "idleTimeoutSeconds": _INT, "upscalingMode": ("Default", "Aggressive", "Conservative"),
    },
    "headServiceAnnotations": _MAP,
    "suspend": _BOOL,
    "headGroupSpec!": {
        "serviceType": _TEXT, "headService": client.V1Service, "enableIngress": _BOOL,
        "rayStartParams!": _MAP, "template!": client.V1PodTemplateSpec,
    },
    "workerGroupSpecs": [
        {
            "groupName!": _TEXT, "replicas": _INT, "minReplicas!": _INT, "maxReplicas!": _INT,
            "numOfHosts": _INT, "rayStartParams!": _MAP, "template!": client.V1PodTemplateSpec,
            "scaleStrategy": {"workersToDelete": [_TEXT], "multihostReplicasToDelete": [_TEXT]},
        }
    ],
}  # fmt: skip
RAY_JOB: dict[str, Any] = {
    "apiVersion!": ("ray.io/v1",),
    "kind!": ("RayJob",),
    "metadata!": client.V1ObjectMeta,
    "spec!": {
        "activeDeadlineSeconds": _INT, "backoffLimit": _INT, "rayClusterSpec": RAY_CLUSTER,
        "submitterPodTemplate": client.V1PodTemplateSpec, "metadata": _MAP,
        "clusterSelector": _MAP, "submitterConfig": {"backoffLimit": _INT}, "managedBy": _TEXT,
        "entrypoint": _TEXT, "runtimeEnvYAML": _TEXT, "jobId": _TEXT,
        "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode"),
        "entrypointResources": _TEXT, "entrypointNumCpus": float, "entrypointNumGpus": float,
        "ttlSecondsAfterFinished": _INT, "shutdownAfterJobFinishes": _BOOL, "suspend": _BOOL,
    },
}  # fmt: skip

# As the client's older and newer releases write types.
_LIST = re.compile(r"[Ll]ist\[(.+)\]")
_DICT = re.compile(r"[Dd]ict[\[(]str, (.+)[\])]")
# Any JSON, or text that is a quantity, a date or an integer with text allowed.
_PLAIN = {"str": str, "int": int, "float": (int, float), "bool": bool, "object": object}


def check_kind(value: dict[str, Any]) -> None:
    """Raise AssertionError unless the value is a valid object of one of KINDS."""
    check(value, KINDS[value["kind"]], value["kind"])


def check(value: Any, schema: Any, where: str) -> None:
    """Raise AssertionError unless the value fits the schema.

    A schema is a model of the client, a type, a tuple of allowed texts, a list of one schema, or a
    dict of fields (`name!` is required, `*` is any name).
    """
    if isinstance(schema, type) and hasattr(schema, "openapi_types"):
        _check_model(value, schema, where)
    elif isinstance(schema, tuple):
        assert value in schema, f"{where}: {value!r} is none of {schema}"
    elif isinstance(schema, list):
        assert isinstance(value, list), f"{where}: {value!r} is no list"
        for i, item in enumerate(value):
            check(item, schema[0], f"{where}[{i}]")
    elif isinstance(schema, dict):
        _check_fields(value, schema, where)
    else:
        good = isinstance(value, schema) and (schema is bool or not isinstance(value, bool))
        assert good, f"{where}: {value!r} is no {schema}"


def _check_fields(value: Any, schema: dict[str, Any], where: str) -> None:
    assert isinstance(value, dict), f"{where}: {value!r} is no mapping"
    known = {name.rstrip("!"): of for name, of in schema.items()}
    for name, item in value.items():
        of = known.get(name, known.get("*"))
        assert of is not None, f"{where}: there is no field {name!r}"
        check(item, of, f"{where}.{name}")
    for name in schema:
        assert not name.endswith("!") or name[:-1] in value, f"{where}: {name[:-1]!r} is missing"


def _check_model(value: Any, model: type, where: str) -> None:
    assert isinstance(value, dict), f"{where}: {value!r} is no mapping"
    types = model.openapi_types
    by_json = {json_name: name for name, json_name in model.attribute_map.items()}
    for json_name, item in value.items():
        assert json_name in by_json, f"{where}: {model.__name__} has no field {json_name!r}"
        _check_type(item, types[by_json[json_name]], f"{where}.{json_name}")
    # The client's own setters know what is required and which texts are allowed.
    try:
        model(**{by_json[json_name]: item for json_name, item in value.items()})
    except ValueError as error:
        raise AssertionError(f"{where}: {error}") from error


def _check_type(value: Any, name: str, where: str) -> None:
    if match := _LIST.fullmatch(name):
        assert isinstance(value, list), f"{where}: {value!r} is no list"
        for i, item in enumerate(value):
            _check_type(item, match[1], f"{where}[{i}]")
    elif match := _DICT.fullmatch(name):
        assert isinstance(value, dict), f"{where}: {value!r} is no mapping"
        for key, item in value.items():
            assert isinstance(key, str), f"{where}: {key!r} is no text"
            _check_type(item, match[1], f"{where}.{key}")
    elif name in _PLAIN:
        good = isinstance(value, _PLAIN[name]) and (name == "bool") == isinstance(value, bool)
        assert good or name == "object", f"{where}: {value!r} is no {name}"
    elif name == "datetime":
        assert isinstance(value, str), f"{where}: {value!r} is no date"
    else:
        _check_model(value, getattr(client, name), where)

"""What travels to a cluster with a job: this installation as a wheel, and the job's environment."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.spec import version

PACKAGES = ("doodl", "jobs", "manifests", "pipeline")
CODE = ("wheel", "image")
PASSED_ON = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "DOODL_DEBUG")
"""Environment variables that go along. Tokens do not: Ray shows a job's environment to whoever may
see its dashboard; set HF_TOKEN on the cluster's nodes."""

_MAX_FILE_BYTES = 2**20
# A zip holds the time of each file; the same files must give the same wheel.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def build_wheel(folder: Path) -> Path:
    """Write a wheel of the packages as they are imported here, and return its path.

    Of a checkout as well as of an installation. Ray takes two wheels of one name for the same, so
    the name carries a hash of the contents (as its build tag). It names no requirements: the
    cluster's image has torch and the rest, and Ray would have pip fetch them anew.
    """
    files = dict(_source_files())
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    info = f"doodl_batch-{version()}.dist-info"
    tags = "py3-none-any"
    # A build tag begins with a digit and holds no hyphen.
    wheel = folder / f"doodl_batch-{version()}-1{digest.hexdigest()[:16]}-{tags}.whl"
    texts = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: doodl-batch\nVersion: {version()}\n",
        f"{info}/WHEEL": (
            f"Wheel-Version: 1.0\nGenerator: doodl-batch\nRoot-Is-Purelib: true\nTag: {tags}\n"
        ),
    }
    contents = {name: path.read_bytes() for name, path in files.items()}
    contents.update({name: text.encode() for name, text in texts.items()})
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            # Weights are noise to a compressor; trying costs seconds at each submission.
            packed = zipfile.ZIP_STORED if name.endswith(".safetensors") else zipfile.ZIP_DEFLATED
            entry.compress_type, entry.external_attr = packed, 0o644 << 16
            archive.writestr(entry, data)
    return wheel


def code_digest() -> str:
    """Return a hash of the program's own code as it is imported here, and of nothing it ships."""
    digest = hashlib.sha256()
    for name, path in _source_files():
        if path.suffix == ".py":
            digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _source_files() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        found = importlib.util.find_spec(package)
        assert found is not None
        assert found.origin is not None
        root = Path(found.origin).parent
        for path in sorted(root.rglob("*")):
            inner = path.relative_to(root)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in inner.parts)
            if path.is_file() and not hidden and path.suffix != ".pyc":
                yield f"{package}/{inner.as_posix()}", path


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def read_runtime_env(path: Path) -> dict[str, Any]:
    """Return the runtime environment of a YAML or JSON file, as Ray documents it.

    Raises: ValueError if it is none, or sets what the submission itself decides.
    """
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise ValueError(f"{path} is larger than a runtime environment ever is.")
    try:
        text = path.read_text()
        if path.suffix == ".json":
            value = json.loads(text)
        else:
            import yaml

            value = yaml.safe_load(text)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    except Exception as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold names and values, as `pip: [package]`.")
    if "working_dir" in value:
        raise ValueError(
            f"{path} sets working_dir; jobs run in an empty folder, so that no file there shadows "
            "the program: ship code with py_modules, data on shared storage."
        )
    variables = value.get("env_vars", {})
    if not isinstance(variables, dict) or not all(isinstance(v, str) for v in variables.values()):
        raise ValueError(f"{path}: env_vars must be names with texts; quote numbers.")
    return value


def runtime_env(
    user: dict[str, Any], working_dir: Path, wheel: Path | None, stop_wait_seconds: float
) -> dict[str, Any]:
    """Return a job's runtime environment.

    Args:
        user: `read_runtime_env`'s; its env_vars win over ours, its py_modules come after our code.
        working_dir: an empty folder: Ray puts it first on sys.path.
        stop_wait_seconds: what a stopped job gets before Ray kills it.
    """
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    variables = {
        **passed_on,
        "RAY_JOB_STOP_WAIT_TIME_S": str(int(stop_wait_seconds)),
        **user.get("env_vars", {}),
    }
    modules = [*([] if wheel is None else [str(wheel)]), *user.get("py_modules", [])]
    return {
        **user,
        "working_dir": str(working_dir),
        "env_vars": variables,
        **({"py_modules": modules} if modules else {}),
    }

"""The few calls a lease needs of an object store; the first is the one that decides.

`create` succeeds for one of many who call it: a conditional PUT (If-None-Match: *) on S3, what
fsspec calls mode "create" on the stores where that is one too.
"""

from __future__ import annotations

import json
import time
from typing import Any, Protocol

from manifests.addresses import chain_problem
from manifests.errors import CommitError
from manifests.paths import has_scheme
from manifests.remote import s3_endpoint, s3_region
from manifests.storage import ArrowStorage, Storage

_ATOMIC = frozenset({"gs", "gcs", "az", "abfs", "abfss", "memory"})


class LeaseStore(Protocol):
    """A folder of small objects."""

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless there is one; return whether it was this call that did."""

    def put(self, name: str, data: bytes) -> None:
        """Write an object, over any of that name."""

    def read(self, name: str) -> tuple[bytes, float] | None:
        """Return an object and the seconds since it was written; None if there is none."""

    def names(self) -> list[str]:
        """Return the objects' names, sorted."""

    def delete(self, name: str) -> None:
        """Remove an object; nothing happens if there is none."""


def lease_store(storage: Storage, folder: str) -> LeaseStore:
    """Return the lease store of an output's storage.

    Raises: CommitError if that storage has no conditional create that we know of.
    """
    if has_scheme(storage.uri) and storage.uri.startswith("s3://"):
        bucket, _, prefix = storage.uri.removeprefix("s3://").partition("/")
        return S3Leases(bucket, f"{prefix}/{folder}".lstrip("/"))
    if isinstance(storage, ArrowStorage):
        found = _fsspec_of(storage, folder)
        if found is not None:
            return found
    raise CommitError(
        f"{storage.uri}: no lease can be taken on this storage, so two runs could write at once; "
        "use a local or mounted folder, s3:// (or a server that speaks it), gs:// or abfs://."
    )


def _fsspec_of(storage: ArrowStorage, folder: str) -> LeaseStore | None:
    scheme = storage.uri.partition("://")[0] if has_scheme(storage.uri) else ""
    handler = getattr(storage.filesystem, "handler", None)
    if handler is not None and hasattr(handler, "fs"):
        protocols = handler.fs.protocol
        known = {protocols} if isinstance(protocols, str) else set(protocols)
        return FsspecLeases(handler.fs, storage.path(folder)) if known & _ATOMIC else None
    if scheme not in _ATOMIC:
        return None
    if problem := chain_problem(storage.uri):
        raise CommitError(f"{storage.uri}: {problem}")
    try:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(f"{storage.uri}/{folder}")
    except ImportError as error:
        raise CommitError(f"a lease on {scheme}:// needs a further package ({error}).") from error
    return FsspecLeases(filesystem, path)


class S3Leases:
    """By boto3: Arrow's client has no conditional PUT. Ages are told by the server's clock."""

    def __init__(self, bucket: str, prefix: str) -> None:
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise CommitError(
                "an output on s3:// needs boto3 for its lease; pip install 'doodl-batch[s3]'."
            ) from None
        retries = {"max_attempts": 3, "mode": "standard"}
        self._s3 = boto3.client(
            "s3",
            endpoint_url=s3_endpoint(),
            region_name=s3_region() or "us-east-1",
            config=Config(retries=retries, connect_timeout=10, read_timeout=20),
        )
        self._bucket, self._prefix = bucket, prefix

    def create(self, name: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._s3.put_object(
                Bucket=self._bucket, Key=f"{self._prefix}/{name}", Body=data, IfNoneMatch="*"
            )
        except ClientError as error:
            if _code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                return False
            raise OSError(f"the lease cannot be written: {_said(error)}") from error
        return True

    def put(self, name: str, data: bytes) -> None:
        with _as_os_error():
            self._s3.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}", Body=data)

    def read(self, name: str) -> tuple[bytes, float] | None:
        from botocore.exceptions import ClientError

        try:
            with _as_os_error("NoSuchKey", "404"):
                got = self._s3.get_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}")
                return got["Body"].read(65536), _age(got)
        except ClientError:
            return None

    def names(self) -> list[str]:
        with _as_os_error():
            got = self._s3.list_objects_v2(Bucket=self._bucket, Prefix=f"{self._prefix}/")
        return sorted(one["Key"].rpartition("/")[2] for one in got.get("Contents", ()))

    def delete(self, name: str) -> None:
        with _as_os_error():
            self._s3.delete_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}")


class _as_os_error:  # noqa: N801 (read as a statement)
    """Turn botocore's errors into OSError; let those with one of these codes through."""

    def __init__(self, *let_through: str) -> None:
        self._let_through = let_through

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        if isinstance(error, ClientError) and _code(error) in self._let_through:
            return
        if isinstance(error, (BotoCoreError, ClientError)):
            raise OSError(f"the lease cannot be reached: {_said(error)}") from error


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _said(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _age(got: dict[str, Any]) -> float:
    """Return the seconds between an object's writing and the answer, both by the server's clock."""
    from email.utils import parsedate_to_datetime

    told = got["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = parsedate_to_datetime(told).timestamp() if told else time.time()
    return max(0.0, now - got["LastModified"].timestamp())


class FsspecLeases:
    """By fsspec; an object's age is told by its writer's clock (`renewed_at`) and ours."""

    def __init__(self, filesystem: Any, path: str) -> None:
        self._fs, self._path = filesystem, path.rstrip("/")

    def create(self, name: str, data: bytes) -> bool:
        try:
            self._fs.pipe_file(f"{self._path}/{name}", data, mode="create")
        except FileExistsError:
            return False
        return True

    def put(self, name: str, data: bytes) -> None:
        self._fs.pipe_file(f"{self._path}/{name}", data)

    def read(self, name: str) -> tuple[bytes, float] | None:
        self._fs.invalidate_cache()
        try:
            data = self._fs.cat_file(f"{self._path}/{name}")
        except FileNotFoundError:
            return None
        try:
            renewed_at = float(json.loads(data)["renewed_at"])
        except (ValueError, KeyError, TypeError):
            renewed_at = 0.0
        return data, max(0.0, time.time() - renewed_at)

    def names(self) -> list[str]:
        self._fs.invalidate_cache()
        try:
            return sorted(p.rpartition("/")[2] for p in self._fs.ls(self._path, detail=False))
        except FileNotFoundError:
            return []

    def delete(self, name: str) -> None:
        try:
            self._fs.rm_file(f"{self._path}/{name}")
        except FileNotFoundError:
            return

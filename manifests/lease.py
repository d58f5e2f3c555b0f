"""One driver at a time where there is no lock: a lease object with holder, epoch, time to live.

Each holder creates the object of the next epoch, which only one can (`LeaseStore.create`), and
writes it again every third of its time to live. Who finds the newest object older than that may
create the next one. A holder that was stopped for so long sees the newer object, or that its own
time is over, and writes nothing more.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from manifests.errors import LeaseLostError
from manifests.lease_store import LeaseStore, lease_store
from manifests.locks import IfRunning, locked_error, new_holder, overdue, utc_now
from manifests.storage import Storage

logger = logging.getLogger(__name__)

LEASES = "_state/lease"
_LEASE_NAME = re.compile(r"[0-9]{9,}\.json")
TTL_SECONDS = 60.0
TTL_VARIABLE = "DOODL_LEASE_SECONDS"
_SAFE_SHARE = 0.75  # of the time to live: after it without a renewal the holder counts as lost


class Lease:
    """A lease held. `check` is asked before each of the driver's writes."""

    def __init__(self, store: LeaseStore, epoch: int, record: dict[str, Any], ttl: float) -> None:
        self._store, self.epoch, self._record, self._ttl = store, epoch, record, ttl
        self._renewed = time.monotonic()
        self._lost: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Give a sign of life of the driver itself, which the next renewal carries.

        Not the renewal's own: its thread goes on though the driver hangs.
        """
        self._record["heartbeat_at"] = utc_now()

    def check(self) -> None:
        """Raise LeaseLostError if another driver has, or may have, taken the folder over."""
        if self._lost is None and time.monotonic() - self._renewed > _SAFE_SHARE * self._ttl:
            self._lost = f"it was not renewed for {time.monotonic() - self._renewed:.0f} s"
        if self._lost is not None:
            raise LeaseLostError(
                f"this run has lost the output's lease ({self._lost}); another may be at work. "
                "What is committed stays; run again to go on."
            )

    def _keep(self) -> None:
        while not self._ended.wait(self._ttl / 3):
            try:
                self.renew()
            except OSError as error:
                logger.warning("the lease was not renewed: %s", error)
            if self._lost is not None:
                return

    def renew(self) -> None:
        """Write the lease again, unless a newer one is there."""
        begun = time.monotonic()
        # Any newer one, not the next alone: holders delete those that came before theirs.
        newest = max(_epochs(self._store.names()), default=0)
        if newest != self.epoch:
            self._lost = f"epoch {newest} is another's" if newest else "its object is gone"
            return
        self._store.put(_name(self.epoch), _encoded(self._record, released=False))
        self._renewed = begun  # the earliest instant at which the store may have it

    def release(self) -> None:
        """Let the next driver begin at once."""
        self._ended.set()
        self._thread.join()
        if self._lost is None:
            with suppress(OSError):
                self._store.put(_name(self.epoch), _encoded(self._record, released=True))


@contextmanager
def driver_lease(
    storage: Storage,
    *,
    if_running: IfRunning = "fail",
    timeout_seconds: float | None = None,
    ttl_seconds: float | None = None,
    heartbeat_timeout_seconds: float | None = None,
) -> Iterator[Lease]:
    """Hold the lease of an output's storage for the body; arguments as `locks.driver_lock`.

    Args:
        ttl_seconds: how long a holder that died keeps others out; DOODL_LEASE_SECONDS, or 60.
    Raises: OutputLockedError if another driver holds it; CommitError if none can be taken there.
    """
    if if_running not in ("fail", "skip", "wait"):
        raise ValueError(f"if_running (={if_running!r}) must be fail, skip or wait.")
    ttl = ttl_seconds or float(os.environ.get(TTL_VARIABLE) or TTL_SECONDS)
    store = lease_store(storage, LEASES)
    begun = time.monotonic()
    while True:
        lease, holder = _take(store, ttl, heartbeat_timeout_seconds)
        if lease is not None:
            break
        waited = time.monotonic() - begun
        over = timeout_seconds is not None and waited > timeout_seconds
        if if_running != "wait" or over or overdue(holder):
            let_go = f" A killed one lets go after {ttl:g} s."
            raise locked_error(storage.uri, holder, if_running, let_go)
        time.sleep(min(2.0, ttl / 4))
    try:
        yield lease
    finally:
        lease.release()


def _take(
    store: LeaseStore, ttl: float, heartbeat_timeout_seconds: float | None
) -> tuple[Lease | None, dict[str, Any]]:
    """Return a lease, or None and who holds it."""
    epochs = _epochs(store.names())
    newest = max(epochs, default=0)
    found = store.read(_name(newest)) if newest else None
    holder = _decoded(found[0]) if found is not None else {}
    if found is not None and not _is_free(holder, found[1], ttl):
        return None, holder
    record = {
        "epoch": newest + 1,
        "ttl_seconds": ttl,
        **new_holder(heartbeat_timeout_seconds),
        **_process_facts(os.getpid()),
    }
    if not store.create(_name(newest + 1), _encoded(record, released=False)):
        return None, {}  # another was faster
    for epoch in epochs[:-1]:
        store.delete(_name(epoch))
    return Lease(store, newest + 1, record, ttl), record


def _is_free(holder: dict[str, Any], age_seconds: float, ttl: float) -> bool:
    if holder.get("released"):
        return True
    # The longer of the two times to live: the holder lives by its own.
    longest = max(ttl, float(holder.get("ttl_seconds") or 0.0))
    return age_seconds > longest or _is_surely_dead(holder)


def _is_surely_dead(holder: dict[str, Any]) -> bool:
    """Return whether the holder was a process of this very machine, since boot, and has ended."""
    here = _process_facts(os.getpid())
    if not here["boot"] or any(holder.get(n) != here[n] for n in ("host", "boot", "pids")):
        return False
    return _process_facts(int(holder.get("pid") or 0))["begun"] != holder.get("begun")


def _process_facts(pid: int) -> dict[str, Any]:
    """Return what tells a process from any other, on any machine, as far as Linux says it."""
    facts: dict[str, Any] = {"host": socket.gethostname(), "boot": "", "pids": "", "begun": None}
    with suppress(OSError):
        facts["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        facts["pids"] = str(Path("/proc/self/ns/pid").readlink())
    with suppress(OSError, IndexError):
        # Field 22: clock ticks since boot at which it began; the name before may hold anything.
        facts["begun"] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return facts


def _encoded(record: dict[str, Any], *, released: bool) -> bytes:
    return json.dumps({**record, "released": released, "renewed_at": time.time()}).encode()


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _name(epoch: int) -> str:
    return f"{epoch:09d}.json"


def _epochs(names: list[str]) -> list[int]:
    return sorted(int(n[:-5]) for n in names if _LEASE_NAME.fullmatch(n))


def lease_holder(storage: Storage) -> dict[str, Any] | None:
    """Return who holds the newest lease of an output, as its record tells; None if nobody does.

    For people: `alive` is False for a process of this machine that has ended, None where that
    cannot be seen from here.
    """
    epochs = _epochs([entry.name for entry in storage.files(LEASES)])
    if not epochs:
        return None
    with suppress(FileNotFoundError):
        holder = _decoded(storage.read(f"{LEASES}/{_name(epochs[-1])}"))
        if holder and not holder.get("released"):
            return {**holder, "alive": False if _is_surely_dead(holder) else None}
    return None

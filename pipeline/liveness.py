"""Whether Ray's own daemons still answer.

Ray tells a driver nothing of its raylet's death, and ends it a minute after the GCS's (Ray 2.60).
Both listen on a port for as long as they live, so a connection tells it at once, by what Ray's
public interface says of them; Ray itself is not imported here.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LOOK_SECONDS = 1.0
_CONNECT_SECONDS = 2.0
UNREACHABLE_SECONDS = 30.0
"""How long one may be out of reach; half of what Ray gives a driver without its GCS."""

# A driver without a file or a port to spare says nothing of Ray.
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)


@dataclass
class Daemon:
    """One of Ray's daemons. `patience_seconds`: how long its port may be closed; 0 where nobody
    would start it again."""

    name: str
    host: str
    port: int
    patience_seconds: float = 0.0
    silent_since: float | None = None

    def look(self) -> str | None:
        """Return a line that says that it is lost; None if it answers, or may yet again."""
        try:
            socket.create_connection((self.host, self.port), _CONNECT_SECONDS).close()
        except ConnectionRefusedError:
            patience = self.patience_seconds
        except OSError as error:
            if error.errno in _OURS:
                return None
            patience = UNREACHABLE_SECONDS
        else:
            self.silent_since = None
            return None
        now = time.monotonic()
        self.silent_since = now if self.silent_since is None else self.silent_since
        if now - self.silent_since < patience:
            return None
        return f"{self.name} no longer answers at {self.host}:{self.port}"


class Watch:
    """Looks at daemons at most once a second; what was once lost stays lost.

    Args:
        folder: where their sockets lie; without it no new worker can start. None: not looked at.
    """

    def __init__(self, daemons: Sequence[Daemon], folder: Path | None = None) -> None:
        self._daemons, self._folder = daemons, folder
        self._looked_at = float("-inf")
        self._lost: str | None = None

    def lost(self, *, now: bool = False) -> str | None:
        """Return a line that says what is lost, None if nothing is.

        Args:
            now: look, however short a time ago the last look was.
        """
        if self._lost is None and (now or time.monotonic() - self._looked_at >= _LOOK_SECONDS):
            self._looked_at = time.monotonic()
            lines = [line for daemon in self._daemons if (line := daemon.look()) is not None]
            if self._folder is not None and not self._folder.exists():
                lines.append(f"Ray's folder {self._folder} was deleted")
            self._lost = " and ".join(lines) or None
        return self._lost

    @property
    def answering(self) -> bool:
        """Whether all answered when last looked at: else Ray's calls may wait for them."""
        return self._lost is None and all(d.silent_since is None for d in self._daemons)

    def give_up(self, line: str) -> None:
        """Count Ray as lost for another reason."""
        self._lost = self._lost or line

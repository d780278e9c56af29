"""Pool: connections to one server that wait for their next request."""

from __future__ import annotations

import threading

from .client import Connection, Counts, Place


class Pool:
    """Idle connections to a place. Any thread may take one; it is that thread's alone until it is kept again or closed."""

    def __init__(self, place: Place, counts: Counts) -> None:
        self._place, self._counts = place, counts
        self._lock = threading.Lock()
        self._idle: list[Connection] = []

    def take(self, until: float) -> tuple[Connection, bool]:
        """A connection, and whether it is a new one. Raises Fault where none can be made by `until`."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return Connection(self._place, until, self._counts), True
            if connection.idle():
                return connection, False
            connection.close()

    def again(self, connection: Connection, until: float) -> Connection:
        """This one, or where the server has closed it a new one."""
        if connection.idle():
            return connection
        connection.close()
        return Connection(self._place, until, self._counts)

    def keep(self, connection: Connection) -> None:
        with self._lock:
            self._idle.append(connection)

    def drop(self) -> None:
        """Close those that wait."""
        with self._lock:
            waiting, self._idle = self._idle, []
        for connection in waiting:
            connection.close()

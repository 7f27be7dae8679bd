"""Connections between the workers of a run, and how they are made: each of them comes to the chief."""

import contextlib
import json
import queue
import socket
import struct
import threading
import time
from typing import Any

from absl import logging

from piggyback_tf.training.cluster import Cluster
from piggyback_tf.training.errors import TrainingError

_RETRY = 0.5
# Who has connected says at once who it is, and waits for the answer until all are there, and a little longer.
_GREETING, _MARGIN = 10.0, 30.0
_HEADER = struct.Struct("!IQ")
# A message is small, but for the saved state of a training, which follows it.
_LONGEST = 64 << 20
_PROTOCOL = "piggyback_tf workers 1"


class WorkerLink:
    """A connection to another worker.

    Args:
        connection: An open socket.
        name: The other worker, for people.
    """

    def __init__(self, connection: socket.socket, name: str):
        self.name = name
        self.heard = time.monotonic()
        self.inbox: queue.Queue[tuple[Any, bytes]] = queue.Queue()
        self._socket = connection
        self._sending = threading.Lock()

    def send(self, kind: str, value: Any = None, data: bytes = b"", timeout: float = -1) -> None:
        """Sends a message; after the timeout nothing is sent, as while a long one is on its way.

        Raises:
            OSError: If the connection is closed.
        """
        header = json.dumps([kind, value]).encode()
        if self._sending.acquire(timeout=timeout):
            try:
                self._socket.sendall(_HEADER.pack(len(header), len(data)) + header + data)
            finally:
                self._sending.release()

    def receive(self) -> tuple[str, Any, bytes]:
        """Returns the kind, the value and the data of the next message.

        Raises:
            OSError: If the connection is closed, or what comes is no message.
        """
        header, data = _HEADER.unpack(self._read(_HEADER.size))
        if header > _LONGEST:
            raise OSError("what came is no message of a worker")
        kind, value = json.loads(self._read(header))
        return kind, value, self._read(data)

    def _read(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            part = self._socket.recv(min(size - len(found), 1 << 20))
            if not part:
                raise OSError("its connection was closed")
            found += part
            self.heard = time.monotonic()
        return bytes(found)

    def close(self) -> None:
        """Closes the connection; whoever waits at it is woken."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def meet(cluster: Cluster, timeout: float) -> dict[int, WorkerLink]:
    """Returns the connections when all workers are there, by the place of the other.

    Args:
        cluster: The workers.
        timeout: How many seconds to wait.

    Raises:
        TrainingError: If one does not come, or is of another run.
    """
    deadline = time.monotonic() + timeout
    greeting = [_PROTOCOL, list(cluster.addresses)]
    if cluster.index:
        return {0: _join_chief(cluster, greeting, deadline, timeout)}
    return _gather_workers(cluster, greeting, deadline, timeout)


def _join_chief(cluster: Cluster, greeting: list[Any], deadline: float, timeout: float) -> WorkerLink:
    name, (host, port), reason = cluster.name(0), cluster.host_and_port(0), ""
    logging.info("Waiting for %s.", name)
    while time.monotonic() < deadline:
        try:
            connection = socket.create_connection((host, port), timeout=max(1.0, deadline - time.monotonic()))
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(_RETRY)
            continue
        _set_up(connection)
        link = WorkerLink(connection, name)
        try:
            link.send("hello", [*greeting, cluster.index])
            connection.settimeout(max(1.0, deadline - time.monotonic()) + _MARGIN)
            kind, value, _ = link.receive()
        except (OSError, ValueError) as error:
            # Something that is not the chief, or TensorFlow of a run that has not ended yet.
            reason = str(error)
            link.close()
            time.sleep(_RETRY)
            continue
        if kind != "welcome":
            link.close()
            raise TrainingError(str(value))
        connection.settimeout(None)
        link.heard = time.monotonic()
        return link
    raise TrainingError(
        f"{capital(name)} was not reached within {timeout:.0f} seconds ({reason}). Start all workers, look at the "
        "addresses in TF_CONFIG, or raise --worker_timeout."
    )


def _gather_workers(cluster: Cluster, greeting: list[Any], deadline: float, timeout: float) -> dict[int, WorkerLink]:
    links: dict[int, WorkerLink] = {}
    missing = list(range(1, len(cluster.addresses)))
    _, port = cluster.host_and_port(0)
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if server.family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            server.bind(("", port))
        except OSError as error:
            raise TrainingError(
                f"The chief cannot listen at port {port}, which TF_CONFIG gives it: {error.strerror or error}. Perhaps "
                "another run uses it; choose another port."
            ) from error
        server.listen()
        while missing:
            names = ", ".join(cluster.name(place) for place in missing)
            left = deadline - time.monotonic()
            logging.info("Waiting for %s.", names)
            server.settimeout(max(left, 0.01))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                sentence = (
                    f"{capital(names)} did not come within {timeout:.0f} seconds. Start all workers, look at the "
                    "addresses in TF_CONFIG, or raise --worker_timeout."
                )
                for link in links.values():
                    with contextlib.suppress(OSError):
                        link.send("refuse", sentence)
                    link.close()
                raise TrainingError(sentence) from None
            place, come = _greet(cluster, connection, greeting, missing)
            if come is not None:
                links[place] = come
                missing.remove(place)
    for link in links.values():
        link.send("welcome")
        link.heard = time.monotonic()
    return dict(sorted(links.items()))


def _greet(
    cluster: Cluster, connection: socket.socket, greeting: list[Any], missing: list[int]
) -> tuple[int, WorkerLink | None]:
    """Returns which worker has come, and the connection to it; None if it is none of these."""
    _set_up(connection)
    connection.settimeout(_GREETING)
    link = WorkerLink(connection, "somebody")
    try:
        kind, value, _ = link.receive()
        if kind != "hello":
            raise ValueError
        *theirs, place = value
        if theirs != greeting:
            link.send("refuse", f"The chief has the workers {greeting}, and this one {theirs}; TF_CONFIG must agree.")
        elif place not in missing:
            link.send("refuse", f"There are two of {cluster.name(place)}; TF_CONFIG gives each its own index.")
        else:
            link.name = cluster.name(place)
            connection.settimeout(None)
            return place, link
    except (OSError, ValueError, TypeError):
        pass
    link.close()
    return 0, None


def _set_up(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def capital(text: str) -> str:
    """Returns a name as a sentence begins with it."""
    return text[:1].upper() + text[1:]

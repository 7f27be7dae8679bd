"""`TF_CONFIG`: which machines work at a task together, and which of them this one is."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from piggyback_tf.training.errors import TrainingError

VARIABLE = "TF_CONFIG"
_EXAMPLE = '{"cluster": {"worker": ["HOST0:PORT", "HOST1:PORT"]}, "task": {"type": "worker", "index": 0}}'
_ROLES = ("chief", "worker")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run.

    Attributes:
        addresses: `HOST:PORT` of each; the first is the chief.
        index: The place of this one.
    """

    addresses: tuple[str, ...]
    index: int

    def name(self, place: int) -> str:
        """Returns what a worker is called, for people."""
        return f"{f'worker {place}' if place else 'the chief'} ({self.addresses[place]})"

    def host_and_port(self, place: int) -> tuple[str, int]:
        """Returns where a worker listens."""
        host, _, port = self.addresses[place].rpartition(":")
        return host.strip("[]"), int(port)

    def rows(self, batch_size: int) -> range:
        """Returns which images of every batch are this one's.

        Raises:
            TrainingError: If the batches cannot be shared evenly.
        """
        each, rest = divmod(batch_size, len(self.addresses))
        if rest or not each:
            raise TrainingError(
                f"--batch_size must be a multiple of the {len(self.addresses)} workers. Received: {batch_size}."
            )
        return range(self.index * each, (self.index + 1) * each)


def read_cluster(environment: Mapping[str, str] = os.environ) -> Cluster:
    """Returns what `TF_CONFIG` says.

    Raises:
        TrainingError: If it is missing or wrong, or there is one worker only.
    """
    text = environment.get(VARIABLE, "")
    if not text:
        raise _wrong("is not set")
    try:
        config = json.loads(text)
        found = config["cluster"]
        role, index = config["task"]["type"], int(config["task"]["index"])
    except (ValueError, KeyError, TypeError) as error:
        raise _wrong(f"cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(found, dict):
        raise _wrong("has a cluster that is no object")
    if strange := sorted(name for name, members in found.items() if name not in _ROLES and members):
        raise _wrong(f"names machines of the kind {strange[0]!r}, which none of the workers is")
    if role not in _ROLES:
        raise _wrong(f"says that this machine is of the kind {role!r}")
    addresses = [address for name in _ROLES for address in _members(found, name)]
    if len(_members(found, "chief")) > 1:
        raise _wrong("names more than one chief")
    if not 0 <= index < len(_members(found, role)):
        raise _wrong(f"says that this is {role} {index}, of which there is none")
    if len(addresses) < 2:
        raise _wrong("names one worker only, which needs --strategy=auto")
    if len({*addresses}) < len(addresses):
        raise _wrong("names one address twice")
    return Cluster(tuple(addresses), index + (len(_members(found, "chief")) if role == "worker" else 0))


def _members(found: Mapping[str, Any], role: str) -> list[str]:
    members = found.get(role) or []
    for address in members if isinstance(members, list) else [members]:
        port = address.rpartition(":")[2] if isinstance(address, str) else ""
        if not (port.isdigit() and 0 < int(port) < 65536 and address.rpartition(":")[0]):
            raise _wrong(f"has the address {address!r}, which must be HOST:PORT")
    return list(members)


def _wrong(what: str) -> TrainingError:
    return TrainingError(f"--strategy=multi_worker needs {VARIABLE}, which {what}. Example: {_EXAMPLE}.")

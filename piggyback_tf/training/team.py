"""Several machines at one task: who they are, what they agree on, and whether all of them are still there.

TensorFlow adds up their gradients. All else goes over connections of the workers to the first of them, the chief, which
are made before TensorFlow is loaded: decisions that depend on files are the chief's, and nobody waits for a worker that
is gone. The chief listens at its address in `TF_CONFIG` until all are there, and then leaves it to TensorFlow.
"""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from piggyback_tf.files import write_atomically
from piggyback_tf.training.cluster import Cluster
from piggyback_tf.training.errors import TrainingError
from piggyback_tf.training.links import WorkerLink, capital, meet

# Each says that it is there every second. One that says nothing for so long is gone, or stopped.
_BEAT, _SILENCE = 1.0, 45.0
# Who could not listen for its own turn for so long knows nothing of the others.
_OWN_PAUSE = 5.0
# How long the chief waits at the end until the others have gone.
_FAREWELL = 10.0
# How long a worker that is told to end waits until a file that is being written is whole.
_FINISH_FILE = 20.0
GO_ON = "The same commands, one for each worker, go on after the last completed epoch."

# Ends the process; gets a sentence that says why.
End = Callable[[str], NoReturn]


class Team:
    """The workers of a run, as one of them sees them; without arguments a process by itself.

    Args:
        cluster: Who they are.
        links: To each other worker, of the chief; else to the chief alone. By the place of the worker.
        end: Ends the process when another worker has ended.
    """

    def __init__(
        self, cluster: Cluster | None = None, links: Mapping[int, WorkerLink] | None = None, end: End | None = None
    ):
        self.size = len(cluster.addresses) if cluster else 1
        self.index = cluster.index if cluster else 0
        self._cluster, self._links, self._end_process = cluster, dict(links or {}), end
        self._leaving = threading.Event()
        self._left = False
        self._ending = threading.Lock()
        # Held while a file is written that the next start goes on with.
        self.writing = threading.Lock()
        self._listeners = [
            threading.Thread(target=self._listen, args=(link,), daemon=True) for link in self._links.values()
        ]
        for listener in self._listeners:
            listener.start()
        if self._links:
            threading.Thread(target=self._watch, daemon=True).start()

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes the files, and decides by them."""
        return self.index == 0

    def rows(self, batch_size: int) -> range | None:
        """Returns which images of every batch are this worker's; None if all are. Raises as `Cluster.rows`."""
        return self._cluster.rows(batch_size) if self._cluster else None

    def agree(self, value: Any = None) -> Any:
        """Returns the chief's value, a JSON value, on every worker."""
        if self.size == 1:
            return value
        if self.is_chief:
            for link in self._links.values():
                link.send("say", value)
            return value
        return self._links[0].inbox.get()[0]

    def share_file(self, path: Path) -> None:
        """Writes a file of the chief to the same name in each worker's own folder."""
        if self.is_chief:
            content = path.read_bytes() if self._links else b""
            for link in self._links.values():
                link.send("say", None, content)
        else:
            write_atomically(path, self._links[0].inbox.get()[1])

    def check_same(self, found: Mapping[str, Any], prefix: str = "") -> None:
        """Compares what each worker has; all must call it.

        Args:
            found: JSON values by name.
            prefix: What stands before a name in the message.

        Raises:
            TrainingError: On every worker, if two differ: with the names and both values.
        """
        if self.is_chief:
            problems = []
            for place, link in self._links.items():
                theirs = link.inbox.get()[0]
                problems += [
                    f"{prefix}{name} is {_shown(found, name)} at the chief and {_shown(theirs, name)} at worker {place}"
                    for name in sorted(found.keys() | theirs.keys())
                    if _shown(found, name) != _shown(theirs, name)
                ]
            self.agree(problems)
        else:
            self._links[0].send("say", dict(found))
            problems = self.agree()
        if problems:
            # Each raises by itself. Nobody may end the others, who perhaps have not read yet what is wrong.
            self.leave()
            raise TrainingError(f"All workers must do the same: {'; '.join(problems)}.")

    def wait_for_end(self) -> None:
        """Waits as long as it takes to find out that another worker is gone, which ends the process."""
        if self.size > 1:
            time.sleep(_SILENCE + 2 * _BEAT)

    def leave(self, sentence: str = "") -> None:
        """Ends the connections when all are done; with a sentence, all others end at once and say it.

        Who has left once does nothing more.
        """
        if self._left:
            return
        self._left = True
        if not sentence and self.size > 1:
            # Nobody goes before all are done, or its end would look like that of one that was lost. Until then all say
            # that they are there.
            if self.is_chief:
                for link in self._links.values():
                    link.inbox.get()
                # Before they hear that they may go, or the end of the first of them could look like a loss.
                self._leaving.set()
            else:
                self._links[0].send("say", "done")
            self.agree("done")
        self._leaving.set()
        self._tell(sentence)
        for listener in self._listeners if self.is_chief and not sentence else ():
            listener.join(_FAREWELL)  # Until the other has gone: it knows then that all are done.
        for link in self._links.values():
            link.close()

    def end(self, sentence: str) -> None:
        """Ends this process at once, from any thread, and all others."""
        with self._ending:
            if not self._leaving.is_set() and self._end_process is not None:
                self._leaving.set()
                # A worker that is stopped takes no more messages; that must not keep this one.
                telling = threading.Thread(target=self._tell, args=(sentence,), daemon=True)
                telling.start()
                telling.join(2.0)
                self._end_process(sentence)

    def _tell(self, sentence: str) -> None:
        for link in self._links.values() if sentence else ():
            with contextlib.suppress(OSError):
                link.send("end", sentence, timeout=1.0)

    def _listen(self, link: WorkerLink) -> None:
        try:
            while True:
                kind, value, data = link.receive()
                if kind == "say":
                    link.inbox.put((value, data))
                elif kind == "end":
                    self.end(value)
        except (OSError, ValueError) as error:
            self.end(f"{capital(link.name)} is gone ({error}). {GO_ON}")

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._leaving.wait(_BEAT):
            now = time.monotonic()
            paused, before = now - before > _OWN_PAUSE, now
            for link in self._links.values():
                if paused:
                    link.heard = now
                if now - link.heard > _SILENCE:
                    self.end(f"{capital(link.name)} has said nothing for {_SILENCE:.0f} seconds. {GO_ON}")
                with contextlib.suppress(OSError):
                    link.send("beat", timeout=0.1)


@contextlib.contextmanager
def joined_team(cluster: Cluster | None, timeout: float, end: Callable[[str, int], NoReturn]) -> Iterator[Team]:
    """Waits until all workers are there, and holds them together while the block runs.

    An error in the block ends all of them; so does SIGTERM.

    Args:
        cluster: The workers; None for a process by itself.
        timeout: How many seconds to wait for others at the start.
        end: Ends the process with a sentence and a status: 0 for that of a worker that was lost, else the number of
            the signal.

    Raises:
        TrainingError: If one does not come, or another program answers.
    """
    if cluster is None:
        yield Team()
        return
    holder: list[Team] = []

    def terminate() -> None:
        me = f"{capital(cluster.name(cluster.index))} was told to end (SIGTERM)."
        if holder:
            holder[0].writing.acquire(timeout=_FINISH_FILE)
            holder[0]._tell(f"{me} {GO_ON}")
        end(f"{me} {GO_ON}", signal.SIGTERM)

    with _heeding_sigterm(terminate):
        links = meet(cluster, timeout)
        team = Team(cluster, links, lambda sentence: end(sentence, 0))
        holder.append(team)
        try:
            yield team
        except BaseException as error:
            text = "was interrupted." if isinstance(error, KeyboardInterrupt) else f"ended: {error}"
            team.leave(f"{capital(cluster.name(cluster.index))} {text}")
            raise
        else:
            team.leave()
        finally:
            for link in links.values():
                link.close()


@contextlib.contextmanager
def _heeding_sigterm(terminate: Callable[[], Any]) -> Iterator[None]:
    """Calls a function at SIGTERM, also while the main thread waits for TensorFlow; Python's handlers wait with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def wait() -> None:
        while signals := os.read(reading, 1):
            if signals[0] == signal.SIGTERM:
                terminate()

    threading.Thread(target=wait, daemon=True).start()
    handler, descriptor = signal.signal(signal.SIGTERM, lambda *_: None), signal.set_wakeup_fd(writing)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, handler)
        os.close(writing)


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else "not set"

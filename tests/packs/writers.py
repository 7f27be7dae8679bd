"""Writers of packs that are killed, or that run out of room: `python -m tests.packs.writers kill|full FILE`.

In a process of its own, because it forks: one that has loaded TensorFlow must not. Prints what it saw as JSON.
"""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from piggyback_tf.packs import TaskPack
from tests.packs.helpers import make_pack, structured_pack

KILLS = 200
# Some 300 kB, so that a writer is killed while it writes, too.
PACKS = [make_pack(seed=seed, settings={"notes": "x" * 300_000}) for seed in range(3)]


def kill(path: Path) -> dict[str, Any]:
    """Kills writers, each at a random point, and reads the file after each; returns what was seen."""
    digests = [pack.content_digest() for pack in PACKS]
    start = time.perf_counter()
    for pack in PACKS:
        pack.save(path)
    rng, duration = Random(0), (time.perf_counter() - start) / len(PACKS)
    found, most = [digests.index(TaskPack.load(path).content_digest())], 1
    for number in range(KILLS):
        read, write = os.pipe()
        child = fork(save_for_ever, number, path, write)
        os.close(write)
        assert os.read(read, 1) == b"."
        os.close(read)
        time.sleep(rng.uniform(0, 2 * duration))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the writer was at work when it was killed"
        found.append(digests.index(TaskPack.load(path).content_digest()))
        most = max(most, len(list(path.parent.iterdir())))
    return {"kills": KILLS, "changes": sum(a != b for a, b in zip(found, found[1:], strict=False)), "files": most}


def full(path: Path) -> dict[str, Any]:
    """Saves a pack where there is room for a share of it; returns by share what came of it, and what the file holds."""
    old, new = structured_pack(seed=0), structured_pack(seed=1, settings={"notes": "x" * 50_000})
    names = {old.content_digest(): "old", new.content_digest(): "new"}
    result = {}
    for share in (0.0, 0.3, 0.999, 1.0):
        old.save(path)
        _, status = os.waitpid(fork(save_with_limit, new, path, int(share * len(new.to_bytes()))), 0)
        left = sorted(file.name for file in path.parent.iterdir())
        result[str(share)] = [os.WEXITSTATUS(status), names[TaskPack.load(path).content_digest()], left]
    return result


def fork(function: Callable[..., Any], *arguments: Any) -> int:
    """Runs a function in a child process, whose exit status is what it returns; returns the child's id."""
    if child := os.fork():
        return child
    status = 255
    try:
        status = function(*arguments)
    finally:
        os._exit(status)


def save_for_ever(first: int, path: Path, ready: int) -> int:
    """Saves one pack after another over the same file, and says so once it begins."""
    os.write(ready, b".")
    while True:
        first += 1
        PACKS[first % len(PACKS)].save(path)


def save_with_limit(pack: TaskPack, path: Path, limit: int) -> int:
    """Saves a pack where no file may be longer than `limit` bytes; returns the number of the error, or 0."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        pack.save(path)
    except OSError as error:
        return error.errno
    return 0


if __name__ == "__main__":
    print(json.dumps({"kill": kill, "full": full}[sys.argv[1]](Path(sys.argv[2]))))

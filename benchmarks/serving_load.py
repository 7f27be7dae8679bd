"""Many clients of a server that merges their requests: is any answer wrong, does memory grow, how long does one take?

    PIGGYBACK_REALDATA=... python benchmarks/serving_load.py
    PIGGYBACK_REALDATA=... python benchmarks/serving_load.py --requests=500

MobileNetV2 at 96 px with ImageNet weights (with random ones all images have the same answer) and eight tasks, exported
and served by `tests.export.serving` with batching, that is by TensorFlow's C++ session; 16 threads with a client each
send 1 to 4 images over gRPC, each image with a task of its own. Every answer is compared with that of the task bank,
which was computed before. Resident memory of the server is read after each hundredth of the requests; its growth is
that from the median of the samples between 50 and 60 % of the requests to the median of those in the last 10 %.

Writes results/serving_load.json; a number of requests that is in it is not run again. The exit status is 1 if something
is above its limit.
"""

import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from bank import CLASSES, PackMaker, check, new_bank, random_images
from common import Results, judge, markdown, parser

TASKS, THREADS, IMAGES, MOST_ROWS = 8, 16, 32, 4
LIMIT = 1e-5
MIB = 2**20
SAMPLES = 100


def measure(requests: int) -> dict[str, Any]:
    """Serves an export, asks it as often as wanted, and returns what was seen."""
    from tasks import mobilenet

    from export.saved_model import export_saved_model
    from tests.export.serving.conftest import running_server

    base = mobilenet()
    maker, images = PackMaker(base), random_images(base, IMAGES)
    packs = [maker(number) for number in range(TASKS)]
    bank = new_bank(base)
    for pack in packs:
        bank.add(pack)
    answers = np.stack([bank.predict(images, task=pack.task) for pack in packs])
    with tempfile.TemporaryDirectory() as folder:
        export_saved_model(base, packs, folder)
        with running_server(f"--model=piggyback={folder}", "--batched=piggyback", "--max_batch_size=32") as server:
            asked = Load(server, images, answers)
            asked.run(min(500, requests), record=False)
            asked.run(requests, record=True)
    return asked.result(requests, nearest_foreign_answer(answers))


class Load:
    """Clients that ask at the same time.

    Args:
        server: The server's port of gRPC and process id.
        images: Images, uint8.
        answers: The probabilities that are right, `[tasks, images, classes]`.
    """

    def __init__(self, server: Any, images: np.ndarray, answers: np.ndarray):
        self._server, self._images, self._answers = server, images, answers
        self._lock, self._done = threading.Lock(), 0
        self.seconds: list[float] = []
        self.resident: list[int] = []
        self.largest = self.wall = 0.0
        self.wrong = 0

    def run(self, requests: int, *, record: bool) -> None:
        """Sends requests; what is not recorded warms the server up."""
        self._done, step = 0, max(1, requests // SAMPLES)
        started = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as pool:
            counts = [len(range(thread, requests, THREADS)) for thread in range(THREADS)]
            seeds = range(THREADS) if record else range(THREADS, 2 * THREADS)
            list(pool.map(lambda seed, count: self._ask(seed, count, step, record), seeds, counts))
        self.wall = time.perf_counter() - started

    def _ask(self, seed: int, count: int, step: int, record: bool) -> None:
        from export.deployment.client import Client
        from tests.export.serving.conftest import resident

        rng, client = np.random.default_rng(seed), Client(grpc=f"127.0.0.1:{self._server.grpc}", deadline=300)
        for _ in range(count):
            rows = rng.integers(1, MOST_ROWS + 1)
            places, tasks = rng.integers(0, len(self._images), rows), rng.integers(0, len(self._answers), rows)
            images, names = self._images[places], [f"task{task}" for task in tasks]
            started = time.perf_counter()
            found = client.classify(images, names)["probabilities"]
            seconds = time.perf_counter() - started
            deviation = float(np.abs(found - self._answers[tasks, places]).max())
            with self._lock:
                self._done += 1
                self.largest, self.wrong = max(self.largest, deviation), self.wrong + (not deviation <= LIMIT)
                if record:
                    self.seconds.append(seconds)
                    if self._done % step == 0:
                        self.resident.append(resident(self._server.pid))

    def result(self, requests: int, foreign: float) -> dict[str, Any]:
        """Returns what was measured, and the checks of it."""
        count = len(self.resident)
        middle, last = self.resident[count // 2 : -(-6 * count // 10)], self.resident[-max(1, count // 10) :]
        growth = float(np.median(last) / np.median(middle) - 1)
        p50, p99 = np.percentile(self.seconds, [50, 99]) * 1e3
        return {
            "requests": requests,
            "threads": THREADS,
            "tasks": TASKS,
            "classes": CLASSES,
            "latency_ms": {"p50": p50, "p99": p99, "max": max(self.seconds) * 1e3},
            "requests_per_second": requests / self.wall,
            "largest_deviation": self.largest,
            "nearest_foreign_answer": foreign,
            "resident_mib": [round(value / MIB, 1) for value in self.resident],
            "checks": [
                check(f"wrong answers of {requests}", self.wrong, 0),
                check("largest deviation from the bank", self.largest, min(LIMIT, foreign / 10)),
                check("growth of the server's memory over the second half", 100 * growth, 2, "%"),
            ],
        }


def nearest_foreign_answer(answers: np.ndarray) -> float:
    """Returns by how much at least an answer differs from that for another image or task."""
    rows = answers.reshape(-1, answers.shape[-1])
    distances = np.abs(rows[:, None] - rows[None]).max(axis=2)
    return float(distances[~np.eye(len(rows), dtype=bool)].min())


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--requests", type=int, default=20_000)
    arguments.add_argument("--results", type=Path, help="Folder for the results in place of benchmarks/results.")
    options = arguments.parse_args()
    if options.requests < SAMPLES:
        sys.exit(f"--requests={options.requests}: at least {SAMPLES} are needed, to see how memory grows.")
    results = Results("serving_load", *([options.results] if options.results else []))
    row = results.run(str(options.requests), lambda: measure(options.requests))
    results.save()
    latency, speed = row["latency_ms"], f"{row['requests_per_second']:.1f}"
    cells = [[row["requests"], row["threads"], *(f"{latency[key]:.1f}" for key in ("p50", "p99", "max")), speed]]
    print(markdown(["requests", "threads", "p50 ms", "p99 ms", "slowest ms", "requests a second"], cells))
    judge(row["checks"])


if __name__ == "__main__":
    main()

"""Are wrong pack files harmless? Opens many, damaged and forged, each with the base it belongs to and without one.

    python benchmarks/fuzz.py

`damaged`: bytes of good files flipped, changed, inserted, deleted, swapped, cut off, spliced with another file.
`forged`: their parts changed by someone who knows the format, and signed with the right checksum where anything can be
read. Each must open to what the file held (a signed forgery: to a sound pack, which fits the base if one is given) or
be refused with a `PackError` that says why, within 5 s of processor time, and with the base in at most 4 times the
memory that opening the good file takes. `large`: the same on packs of 3 million weights, each opened in a process of
its own, whose resident memory is measured. `claims`: the most that a small file can cost where no base is given.

Prints a table, writes results/fuzz.json, and exits with 1 if anything else happens.
"""

import dataclasses
import json
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from common import Results, markdown, parser

from piggyback_tf.packs import BaseSpec, MaskBits, format2_to_6
from piggyback_tf.packs.bits import pack_bits
from tests.packs.forgeries import FORGERIES, forge_file
from tests.packs.helpers import base_of, channel_mask, forge, make_pack, rates_of, structured_pack
from tests.packs.mutate import EDITS, MOST_MEMORY, Sample, damage, find_fault, honest_memory, open_file, samples

# Bytes that decoding takes for a weight, of which one is the largest layer's and all are ternary; and what opening any
# file takes beside.
BYTES_A_WEIGHT, BYTES_BESIDE = 2.25, 1 << 26


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--damaged", type=int, default=14_000, help="number of damaged files")
    arguments.add_argument("--forged", type=int, default=8_000, help="number of forged files")
    arguments.add_argument("--large", type=int, default=400, help="number of large files")
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    results = Results("fuzz")
    results.rows.clear()
    small = Fuzz(samples(), options.seed, apart=False)
    for title, kinds, files in (("damaged", EDITS, options.damaged), ("forged", FORGERIES, options.forged)):
        count = -(-files // len(kinds))
        for kind in kinds:
            results.run(f"{title}: {kind}", lambda kind=kind, count=count: small.run([kind], count))
    large = Fuzz([large_sample("binary"), large_sample("ternary")], options.seed, apart=True)
    results.run("large", lambda: large.run([*EDITS, *FORGERIES], options.large))
    results.run("claims", open_claims)
    results.save(seed=options.seed)
    table = [
        [kind, *(f"{row[name]:,}" for name in ("files", "identical", "other", "refused"))]
        + [f"{row['seconds']:.2f}", row["memory"], len(row["faults"])]
        for kind, row in results.rows.items()
    ]
    print(markdown(["kind", "files", "opened, identical", "opened, sound", "refused", "s", "memory", "faults"], table))
    faults = [f"{kind}: {fault}" for kind, row in results.rows.items() for fault in row["faults"]]
    print("\n".join(faults) or f"{sum(row['files'] for row in results.rows.values()):,} files, no fault.")
    return 1 if faults else 0


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of opening a file: `"identical"`, `"other"` or `"refused"`, seconds, bytes of memory, and a fault."""

    outcome: str
    seconds: float
    memory: int
    fault: str | None


class Fuzz:
    """Opens wrong files made of good ones.

    Args:
        good: The good files.
        seed: Where everything is drawn from.
        apart: Whether each is opened in a process of its own, to measure its resident memory.
    """

    def __init__(self, good: list[Sample], seed: int, apart: bool):
        self._good, self._seed = good, seed
        self._try = try_apart if apart else try_here
        # The first time, modules are imported.
        tries = [[self._try(one.data, one.base, {one.digest}, np.inf, True) for _ in range(2)][1] for one in good]
        assert all(one.outcome == "identical" for one in tries)
        self._memory = [one.memory for one in tries]

    def run(self, kinds: list[str], count: int) -> dict[str, Any]:
        """Returns the row of some kinds: how many files were opened and refused, and the worst of everything."""
        row: dict[str, Any] = {"files": count, "identical": 0, "other": 0, "refused": 0, "seconds": 0.0}
        ratio, row["faults"] = 0.0, []
        for number in range(count):
            kind = kinds[number % len(kinds)]
            rng = Random(f"{self._seed} {kind} {number}")
            at = rng.randrange(len(self._good))
            sample, donor = self._good[at], rng.choice(self._good)
            if kind in EDITS:
                edits = [
                    (kind, rng.randrange(1 << 30), rng.randrange(1 << 30)) for _ in range(rng.choice((1, 1, 2, 5)))
                ]
                data, contents = damage(sample.data, edits, donor.data), {sample.digest, donor.digest}
            else:
                data, contents = forge_file(sample.data, kind, rng), None
            honest = honest_memory(sample, self._memory[at], data)
            # Tracing memory takes time, which is measured without.
            traced = self._try(data, sample.base, contents, MOST_MEMORY * honest, True)
            known = self._try(data, sample.base, contents, np.inf, False)
            unknown = self._try(data, None, contents, np.inf, False)
            ratio = max(ratio, traced.memory / honest)
            row["seconds"] = max(row["seconds"], known.seconds, unknown.seconds)
            faults = {result.fault for result in (traced, known, unknown) if result.fault}
            row["faults"] += [f"{sample.name}, {kind}, file {number}: {fault}" for fault in sorted(faults)]
            row[unknown.outcome] += 1
        return row | {"memory": f"{ratio:.2f} x"}


def try_here(data: bytes, base: BaseSpec | None, contents: set[str] | None, limit: float, traced: bool) -> Result:
    """Opens a file; memory is what Python and numpy allocate at the most.

    Args:
        data: The file.
        base: The base, if it is given.
        contents: What it may hold, see `find_fault`.
        limit: Bytes of memory that it may take.
        traced: Whether to measure memory.
    """
    opening = open_file(data, base, traced)
    if traced:
        opening = dataclasses.replace(opening, seconds=0.0)
    return _result(opening, base, contents, limit)


def try_apart(data: bytes, base: BaseSpec | None, contents: set[str] | None, limit: float, traced: bool) -> Result:
    """Does what `try_here` does in a process of its own; memory is by how much it becomes larger."""
    read, write = os.pipe()
    if not (child := os.fork()):
        before = _resident("VmRSS")
        opening = open_file(data, base)
        opening = dataclasses.replace(opening, memory=_resident("VmHWM") - before)
        result = dataclasses.asdict(_result(opening, base, contents, limit))
        os.write(write, json.dumps(result).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        answer = stream.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        return Result("refused", 0.0, 0, f"ends the process with status {status}")
    return Result(**json.loads(answer))


def _result(opening: Any, base: BaseSpec | None, contents: set[str] | None, limit: float) -> Result:
    fault = find_fault(opening, contents, base, limit)
    outcome = "refused" if opening.pack is None else "other"
    if opening.pack is not None and contents and opening.pack.content_digest() in contents:
        outcome = "identical"
    return Result(outcome, opening.seconds, opening.memory, fault)


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def large_sample(kind: str) -> Sample:
    """Returns a good file with masks for three million weights."""
    shapes = {f"conv{number}/kernel": (3, 3, 256, 192) for number in range(7)}
    arrays = {path: channel_mask(shape, kind, seed) for seed, (path, shape) in enumerate(shapes.items())}
    masks = {path: MaskBits(shapes[path], pack_bits(array, kind)) for path, array in arrays.items()}
    pack = structured_pack(kind, masks=masks)
    return Sample(f"large {kind}", pack.to_bytes(), pack.content_digest(), base_of(pack))


def open_claims() -> dict[str, Any]:
    """Returns the row of the most that small files can cost where no base is given."""
    row: dict[str, Any] = {"files": 0, "identical": 0, "other": 0, "refused": 0, "seconds": 0.0, "faults": []}
    most = 0
    for name, data in claims():
        result = try_apart(data, None, None, BYTES_A_WEIGHT * format2_to_6.MAX_WEIGHTS + BYTES_BESIDE, False)
        row["files"] += 1
        row[result.outcome] += 1
        row["seconds"] = max(row["seconds"], result.seconds)
        most = max(most, result.memory)
        row[name] = {"bytes": len(data), "seconds": round(result.seconds, 2), "mib": result.memory >> 20}
        if result.fault:
            row["faults"].append(f"{name}: {result.fault}")
    return row | {"memory": f"{most >> 20} MiB"}


def claims() -> Iterator[tuple[str, bytes]]:
    """Yields small files that claim as much as they may, by name."""
    width = 1 << 14
    for kind in ("binary", "ternary"):
        for classes in (1, 16):
            for rate in (1, 200):
                shape = [format2_to_6.MAX_WEIGHTS // width, width]
                lines = _lines(1, shape, classes)
                name = f"one layer, {kind}, {classes} x {classes} classes, rate {rate}"
                yield name, _claim(kind, lines, rate)
    yield "many layers", _claim("binary", _lines(16_000, [1], 1), 0)
    yield "many rectangles", _claim("binary", _lines(900, [16, 256], 16), 200)
    index = zlib.compress(b'{"masks":[],"norm":[' + b"[]," * 349_000 + b"[]]}", 9)
    yield "an index of brackets", forge(make_pack(), index=lambda _: index)


def _lines(number: int, shape: list[int], classes: int) -> list[dict[str, Any]]:
    extra = {"classes": [classes, classes]} if classes > 1 else {}
    return [{"path": f"{n}", "shape": shape, "zeros": 0, "codec": "ans"} | extra for n in range(number)]


def _claim(kind: str, lines: list[dict[str, Any]], rate: int) -> bytes:
    count = sum(rates_of(line.get("classes", [1, 1]), kind) for line in lines)
    tensors = {
        "masks/rates": np.full(count, rate, np.uint8),
        "masks/stream": np.arange(1, 50, dtype=np.uint32),
        "masks/bits": ...,
    }
    return forge(make_pack(kind), tensors=tensors, index=lambda index: index.update(masks=lines))


if __name__ == "__main__":
    sys.exit(main())

"""Folders and records as train.py and benchmarks/methods.py write them, with results by hand."""

import json
from pathlib import Path

from piggyback_tf.evaluation.tables import make_table, read_runs
from tests.packs.helpers import make_pack

MAKES_PACK = ("classifier_only", "piggyback")
REPLACES_BASE = ("ewc", "hat", "lwf")
SETTINGS = {
    "method": "piggyback",
    "backbone": "vgg16",
    "weights": "imagenet",
    "image_size": None,
    "seed": 0,
    "norm": "frozen",
    "mask_init": "constant",
    "epochs": 30,
    "baseline": [],
}
BASE = 1_000_000


def errors(top1, images=400, **more):
    """Returns what `evaluate` does, as far as tables look at it."""
    return {"top1_error": top1, "top1_error_low": top1 - 1, "top1_error_high": top1 + 1, "images": images, **more}


def write_single(folder: Path, task, results, *, classes=("x", "y"), base_hash="ab" * 32, pack=True, **settings):
    """Writes a run with one task.

    Args:
        folder: Where.
        task: Name of the task.
        results: By method, its test errors (a number, or what `errors` returns); the last is the main method.
        classes: Names of the classes.
        base_hash: Hash of the base.
        pack: Whether the pack of piggyback is there.
        **settings: Flags other than those in `SETTINGS`.
    """
    *baselines, main = results
    methods = {}
    for method, found in results.items():
        own = folder if method == main else folder / "baselines" / method
        own.mkdir(parents=True, exist_ok=True)
        entry = {"test": found if isinstance(found, dict) else errors(found), "seconds": 60.0}
        made = make_pack(task=task, seed=len(task))
        path = own / f"{task}.{'task.safetensors' if method in MAKES_PACK else 'keras'}"
        size, kept = BASE + 10, 0 if method in REPLACES_BASE else BASE
        if method == "piggyback":
            entry |= {"zeros": made.zeros, "zeros_total": made.zeros_total}
            made.save(path)
            size = path.stat().st_size
            if not pack:
                path.unlink()
        methods[method] = entry | {"file": path.name, "bytes": {"task": size, "base": BASE, "kept": kept}}
    settings = {**SETTINGS, "method": main, "baseline": baselines, "task": task, **settings}
    found = {"class_names": list(classes), "base_hash": base_hash}
    _write(folder, settings, {"task": task, "base_hash": base_hash, "methods": methods}, found)
    return str(folder)


def sequence(
    method, steps, *, base_hash="ab" * 32, added=5000, compressed=1000, learning=0, replaces=False, cost=100, **more
):
    """Returns what `run_sequence` does.

    Args:
        method: Name of the method.
        steps: For each task in order its name and the errors of all tasks after it was learned, by task.
        base_hash: Hash of the base.
        added: Bytes.
        compressed: Bytes.
        learning: Bytes.
        replaces: Whether the base is no longer needed.
        cost: Multiply-adds of each task's network.
        **more: Further entries of the metrics and measures.
    """
    tasks = list(steps)
    written = [
        {
            "errors": {name: found if isinstance(found, dict) else errors(found) for name, found in step.items()},
            "trained_parameters": 70,
            "seconds": 10.0,
            "multiply_adds": dict.fromkeys(step, cost),
            "bytes": {
                "base": BASE,
                "system": added if replaces else BASE + added,
                "added": added,
                "compressed": compressed,
                "learning": learning,
            },
        }
        if step
        else {"errors": {}}
        for step in steps.values()
    ]
    measures = {"average_error": 0.0, "forgetting": None, "backward_transfer": None, "old_answers_identical": True}
    measures |= {"seconds": 10.0 * len(tasks)} | more.pop("measures", {})
    return {"method": method, "tasks": tasks, "base_hash": base_hash, "steps": written, "measures": measures} | more


def write_sequence(folder: Path, metrics, *, packs=False, **settings):
    """Writes the folder of a sequence."""
    tasks = metrics["tasks"]
    settings = {
        **SETTINGS,
        "method": metrics["method"],
        "tasks": [f"{task}=folder:{task}" for task in tasks],
        **settings,
    }
    found = {f"{task}: class_names": ["x", "y"] for task in tasks} | {"base_hash": metrics["base_hash"]}
    for place, task in enumerate(tasks, start=1):
        (folder / f"{place}_{task}").mkdir(parents=True, exist_ok=True)
        if packs:
            make_pack(task=task, seed=place).save(folder / f"{place}_{task}" / f"{task}.task.safetensors")
    _write(folder, settings, metrics, found)
    return str(folder)


def write_packnet(folder: Path):
    """Writes two sequences of PackNet, in both orders; returns their folders."""
    down = sequence(
        "packnet", {"cubs": {"cubs": 22}, "cars": {"cubs": 22, "cars": 15}}, replaces=True, added=BASE + 999
    )
    up = sequence("packnet", {"cars": {"cars": 13}, "cubs": {"cars": 13, "cubs": 25}}, replaces=True, added=BASE + 999)
    return [write_sequence(folder / "down", down), write_sequence(folder / "up", up)]


def table_of(layout, *runs):
    """Returns the table of some folders."""
    return make_table(layout, read_runs([str(run) for run in runs]))


def cells_of(table):
    """Returns the cells of a table as text, by row and column."""
    keys = ["/".join(str(cell) for cell in row[: table.left]) for row in table.rows]
    columns = table.header[table.left :]
    return {
        key: dict(zip(columns, ("" if cell is None else str(cell) for cell in row[table.left :]), strict=True))
        for key, row in zip(keys, table.rows, strict=True)
    }


def _write(folder: Path, settings, metrics, found):
    for name, content in (("settings", settings), ("metrics", metrics), ("found", found)):
        (folder / f"{name}.json").write_text(json.dumps(content))

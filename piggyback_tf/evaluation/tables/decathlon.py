"""Table 8 of the Piggyback paper: methods on the Visual Decathlon, one's own runs below what was published."""

import dataclasses
import math
from collections.abc import Sequence

from piggyback_tf.evaluation.decathlon import (
    BASE_DOMAIN,
    DOMAINS,
    PUBLISHED,
    decathlon_score,
    relative_parameters,
)
from piggyback_tf.evaluation.tables.cells import Cell, Number, Table, mean
from piggyback_tf.evaluation.tables.runs import Record, TableError
from piggyback_tf.evaluation.tables.variants import all_tasks, by_seed, name_variants, one_base
from piggyback_tf.evaluation.text import main_error
from piggyback_tf.packs import TaskPack

_TITLES = {
    "classifier_only": "Classifier Only",
    "finetune": "Individual Networks",
    "residual_adapters": "Residual adapters",
    "dan": "DAN",
    "piggyback": "Piggyback",
}
_SIZES = ("parameters", "with heads")


def visual_decathlon(records: Sequence[Record]) -> Table:
    """Returns table 8: accuracies on the ten sets, parameters and score; published rows are marked as such."""
    chosen = [record for record in records if record.method in _TITLES and not record.refused]
    if not any(task in DOMAINS for task in all_tasks(chosen)):
        raise TableError(
            f"Layout paper8 has the methods {', '.join(_TITLES)} and the tasks {', '.join(DOMAINS)}, and none of the "
            "runs is of these."
        )
    one_base(chosen, "Layout paper8 is a table of one network", "Give runs on one.")
    rows: list[list[Cell]] = [
        [
            f"{row.title} (published)",
            Number(row.parameters, style="ratio"),
            None,
            *map(Number, row.accuracies),
            Number(row.score, style="count"),
        ]
        for row in PUBLISHED
    ]
    titles = name_variants(chosen, _TITLES)
    for title in dict.fromkeys(titles.values()):
        rows.append([title, *_row([record for record in chosen if titles[record] == title], chosen)])
    notes = [
        "Accuracies (%). Published: table 8 of the Piggyback paper, on hidden test images. Own rows: on the test split "
        "of each run.",
        "Parameters: those of one network are 1. Kernels count, a mask as a 32nd of them; heads do not, batch norm "
        "neither. With heads: the same with the heads of the tasks.",
        "Score: the sum over the sets of 1000 (max(0, (E_max - E) / E_max))^2, where E_max is twice the error that was "
        "published for fine-tuning. A row without all ten sets has none.",
        f"{DOMAINS[BASE_DOMAIN]} is what the base was trained on. A row of other methods than {_TITLES['finetune']} "
        f"without a run on it has the accuracy of {_TITLES['classifier_only']} there, with the same base.",
    ]
    if unknown := [task for task in all_tasks(chosen) if task not in DOMAINS]:
        notes.append(f"No sets of the decathlon: {', '.join(unknown)}.")
    header = ["method", *_SIZES, *DOMAINS.values(), "score"]
    return Table("paper8", "The Visual Decathlon", header, rows, notes=notes)


def _row(runs: Sequence[Record], all_runs: Sequence[Record]) -> list[Cell]:
    """Returns the cells of one method with its settings."""
    errors = {domain: _error(runs, domain) for domain in DOMAINS}
    if errors[BASE_DOMAIN] is None and runs[0].method != "finetune":
        heads_alone = [record for record in all_runs if record.method == "classifier_only"]
        errors[BASE_DOMAIN] = _error(heads_alone, BASE_DOMAIN)
    accuracies = [
        None if error is None else dataclasses.replace(error, value=100 - error.value) for error in errors.values()
    ]
    known = {domain: error.value for domain, error in errors.items() if error is not None}
    score = Number(decathlon_score(known), style="count") if len(known) == len(DOMAINS) else None
    return [*_parameters(runs), *accuracies, score]


def _error(runs: Sequence[Record], domain: str) -> Number | None:
    found = [record.errors.get(domain, {}) for record in by_seed(runs, domain)]
    return mean([one.get(main_error(one)) if one else None for one in found])


def _parameters(runs: Sequence[Record]) -> list[Cell]:
    """Returns the parameters of the base with all tasks of a method, without heads and with them, where known."""
    method, tasks = runs[0].method, [task for task in all_tasks(runs) if task in DOMAINS and task != BASE_DOMAIN]
    if method == "finetune":
        return [Number(len(tasks) + 1, style="ratio"), None]
    if method == "classifier_only":
        return [Number(1, style="ratio"), None]
    if method != "piggyback":
        return [None, None]
    files = [next((record.packs[task] for record in runs if task in record.packs), None) for task in tasks]
    packs = [TaskPack.load(file) for file in files if file is not None]
    if len(packs) < len(tasks) or not tasks:
        return [None, None]
    masked = {pack.task: sum(math.prod(mask.shape) for mask in pack.masks.values()) for pack in packs}
    heads = {pack.task: sum(value.size for value in pack.head.values()) for pack in packs}
    # Masks are of all kernels, if not of some by choice.
    kernels = max(masked.values())
    return [
        Number(relative_parameters(kernels, masked), style="ratio"),
        Number(relative_parameters(kernels, masked, heads), style="ratio"),
    ]

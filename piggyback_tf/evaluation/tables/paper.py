"""Tables in the layout of those of the Piggyback paper (Mallya, Davis, Lazebnik, ECCV 2018), from one's own runs."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from piggyback_tf.evaluation.tables.cells import Cell, Number, Table, mean
from piggyback_tf.evaluation.tables.runs import Record, TableError
from piggyback_tf.evaluation.tables.variants import all_tasks, by_seed, name_bases, name_variants, one_base, order_sign
from piggyback_tf.evaluation.text import main_error

# The paper's names of methods, in the order of its columns.
TITLES = {
    "joint": "Joint Training",
    "classifier_only": "Classifier Only",
    "packnet": "PackNet",
    "piggyback": "Piggyback",
    "finetune": "Individual Networks",
}
_SPREAD = "Mean ± standard deviation over seeds where there are several."
NORM_TITLES = {"frozen": "fixed batch norm", "task": "trained batch norm"}

Columns = Mapping[str, Sequence[Record]]


def fine_grained(records: Sequence[Record]) -> Table:
    """Returns table 2: the error of each task with each method on one network, and what all tasks take."""
    methods = ("classifier_only", "packnet", "piggyback", "finetune")
    chosen, notes = _choose(records, methods, "paper2")
    one_base(chosen, "Layout paper2 is a table of one network", "Give runs on one, or use --layout=paper4.")
    return _errors("paper2", "Errors (%) of tasks on one network", chosen, notes, methods)


def large_scale(records: Sequence[Record]) -> Table:
    """Returns table 3: as table 2, with joint training and top-5 errors, as for adding Places365 to ImageNet."""
    methods = ("joint", "classifier_only", "packnet", "piggyback", "finetune")
    chosen, notes = _choose(records, methods, "paper3")
    one_base(chosen, "Layout paper3 is a table of one network", "Give runs on one, or use --layout=paper4.")
    table = _errors("paper3", "Errors (%) with large data sets", chosen, notes, methods, top5=True)
    return _with_top5_note(table)


def networks(records: Sequence[Record]) -> Table:
    """Returns table 4: as table 2, for several networks."""
    methods = ("classifier_only", "packnet", "piggyback", "finetune")
    chosen, notes = _choose(records, methods, "paper4")
    return _errors("paper4", "Errors (%) of tasks on several networks", chosen, notes, methods, by_network=True)


def initialisations(records: Sequence[Record]) -> Table:
    """Returns table 5: errors of masks by what the network was trained on before, and by where masks start."""
    chosen, notes = _choose(records, ("piggyback",), "paper5")
    columns = _by_base(chosen, weights=True)
    tasks = all_tasks(chosen)
    rows: list[list[Any]] = [[task, *(_error(runs, task, top5=True) for runs in columns.values())] for task in tasks]
    caption = "Errors (%) of masks by initialisation"
    table = Table("paper5", caption, ["task", *columns], rows, notes=[*notes, _SPREAD]).without_empty_columns()
    return _with_top5_note(table)


def _with_top5_note(table: Table) -> Table:
    """Returns a table with what its brackets are, if it has any: tasks of few classes have no top-5 error."""
    if not any(isinstance(cell, Number) and cell.second for row in table.rows for cell in row):
        return table
    return dataclasses.replace(table, notes=["In brackets: top-5 errors.", *table.notes])


def zeros(records: Sequence[Record]) -> Table:
    """Returns table 6: the part of each network's masked weights that a task does not use."""
    chosen, notes = _choose(records, ("piggyback",), "paper6")
    columns = _by_base(chosen)

    def cell(runs: Sequence[Record], task: str) -> Number | None:
        found = [record.zeros(task) for record in by_seed(runs, task)]
        return mean([None if one is None else 100 * one[0] for one in found])

    rows: list[list[Any]] = [[task, *(cell(runs, task) for runs in columns.values())] for task in all_tasks(chosen)]
    caption = "Zeros (%) in the masks of tasks"
    return Table("paper6", caption, ["task", *columns], rows, notes=[*notes, _SPREAD]).without_empty_columns()


def batch_norm(records: Sequence[Record]) -> Table:
    """Returns table 7: errors of masks with the base's batch norm and with one that is trained for each task."""
    chosen, notes = _choose(records, ("piggyback",), "paper7")
    if unknown := [record for record in chosen if record.settings.get("norm") not in NORM_TITLES]:
        raise TableError(f"{unknown[0].source!r} does not say whether batch norm was trained (setting `norm`).")
    variants = name_variants(chosen, {"piggyback": ""}, ignore=["norm"])
    titles = {record: f"{NORM_TITLES[record.settings['norm']]}{variants[record]}" for record in chosen}
    order = sorted(dict.fromkeys(titles.values()), key=lambda title: not title.startswith(NORM_TITLES["frozen"]))
    bases = name_bases(chosen)
    rows: list[list[Cell]] = []
    for key, name in bases.items():
        own = [record for record in chosen if record.base.key == key]
        columns = {title: [record for record in own if titles[record] == title] for title in order}
        rows += [[name, task, *(_error(runs, task) for runs in columns.values())] for task in all_tasks(own)]
    caption = "Errors (%) of masks with fixed and with trained batch norm"
    header = ["network", "task", *order]
    return Table("paper7", caption, header, rows, left=2, notes=[*notes, _SPREAD]).without_empty_columns()


def _choose(records: Sequence[Record], methods: Sequence[str], layout: str) -> tuple[list[Record], list[str]]:
    """Returns the runs of a layout's methods, and sentences about the others."""
    # PackNet packs tasks into one network in turn: runs with a task each say nothing of that.
    fits = [record for record in records if record.method in methods]
    learned = [record for record in fits if record.method != "packnet" or record.in_turn]
    chosen = [record for record in learned if not record.refused]
    notes = []
    if other := list(dict.fromkeys(record.method for record in records if record not in fits)):
        notes.append(f"Not in this layout: {', '.join(other)}.")
    if alone := [record.source for record in fits if record not in learned]:
        notes.append(f"Left out, since PackNet learns tasks in a sequence: {', '.join(map(repr, alone))}.")
    notes += dict.fromkeys(f"{record.name or record.method}: {record.refused}" for record in learned if record.refused)
    if not chosen:
        raise TableError(f"Layout {layout} has the methods {', '.join(methods)}, and none of the runs is of these.")
    return chosen, notes


def _errors(
    name: str,
    caption: str,
    records: Sequence[Record],
    notes: Sequence[str],
    methods: Sequence[str],
    *,
    by_network: bool = False,
    top5: bool = False,
) -> Table:
    """Returns a table of errors: a row a task, a column a method, and what all tasks together take as the last row."""
    base_task = _task_of_base(records)
    titles = _titles(records, base_task)
    order = list(dict.fromkeys(titles[record] for method in methods for record in records if record.method == method))
    bases = name_bases(records)
    rows: list[list[Cell]] = []
    for key, network in bases.items():
        own = [record for record in records if record.base.key == key]
        columns = [[record for record in own if titles[record] == title] for title in order]
        start = [network] if by_network else []
        for task in all_tasks(own):
            rows.append([*start, task, *(_error(runs, task, top5=top5) for runs in columns)])
        new = [task for task in all_tasks(own) if task != base_task]
        rows.append([*start, "models (size)", *(_models(runs, new) for runs in columns)])
    if not by_network:
        caption = f"{caption}, {next(iter(bases.values()))}"
    header = [*(["network"] if by_network else []), "task", *order]
    notes = [*notes, *_about_packnet(records, titles, base_task), _SPREAD]
    return Table(name, caption, header, rows, left=1 + by_network, notes=notes).without_empty_columns()


def _task_of_base(records: Sequence[Record]) -> str | None:
    """Returns the task of the base's own data, if PackNet was given it: its first in every order, and no other's."""
    orders = [record.tasks for record in records if record.method == "packnet"]
    firsts = {order[0] for order in orders}
    others = {task for record in records if record.method != "packnet" for task in record.tasks}
    if len(firsts) != 1 or firsts & others or not others or any(len(order) == 1 for order in orders):
        return None
    return firsts.pop()


def _titles(records: Sequence[Record], base_task: str | None) -> dict[Record, str]:
    """Returns the title of the column of each run; PackNet has one for each order of tasks."""
    titles = name_variants(records, TITLES)
    tasks = [task for task in all_tasks(records) if task != base_task]
    for record in records:
        if record.method == "packnet":
            titles[record] += f" {order_sign([task for task in record.tasks if task != base_task], tasks)}"
    return titles


def _about_packnet(records: Sequence[Record], titles: Mapping[Record, str], base_task: str | None) -> list[str]:
    """Says what the arrows mean, and on which task PackNet retrained the pruned base."""
    firsts = {titles[record]: record.tasks[0] for record in records if record.method == "packnet"}
    if not firsts:
        return []
    if base_task is not None:
        first = f"PackNet prunes the base and retrains it on {base_task}, which the arrows leave out, as in the paper."
    else:
        retrained = "; ".join(f"{title}: {task}" for title, task in firsts.items())
        first = (
            f"PackNet prunes the base and retrains it on its first task ({retrained}); in the paper, that is the data "
            "of the base."
        )
    arrows = "↓: tasks learned in the order of the rows, ↑: in reverse."
    return [*([arrows] if any(title[-1] in "↓↑" for title in firsts) else []), first]


def _by_base(records: Sequence[Record], weights: bool = False) -> Columns:
    """Returns runs of masks by a title that names their base, and their settings if these differ."""
    variants, bases = name_variants(records, {"piggyback": ""}), name_bases(records, weights)
    columns: dict[str, list[Record]] = {}
    for record in records:
        columns.setdefault(bases[record.base.key] + variants[record], []).append(record)
    return columns


def _error(records: Sequence[Record], task: str, top5: bool = False) -> Number | None:
    """Returns the test error of a task over the seeds of a method."""
    found = [record.errors.get(task, {}) for record in by_seed(records, task)]
    top1 = mean([one.get(main_error(one)) if one else None for one in found])
    second = mean([one.get("top5_error") for one in found]) if top5 else None
    return None if top1 is None else Number(top1.value, top1.spread, second=second)


def _models(records: Sequence[Record], tasks: Sequence[str]) -> str | None:
    """Returns how many networks hold the base and all tasks, and their size, `"1 (621 MB)"`, as the paper counts them.

    Masks and PackNet's owners of weights count as bits and bytes, not compressed. None if a task is missing.
    """
    if any(not by_seed(records, task) for task in tasks):
        return None
    totals = system_bytes(records, tasks)
    if not totals:
        return None
    networks = len(tasks) + 1 if records[0].method == "finetune" else 1
    megabytes = statistics.fmean(totals) / 1e6
    return f"{networks} ({megabytes:,.0f} MB)" if megabytes >= 100 else f"{networks} ({megabytes:.3g} MB)"


def system_bytes(records: Sequence[Record], tasks: Sequence[str]) -> list[int]:
    """Returns the bytes of the base and some tasks for each seed that learned all of them; none if one is not known."""
    runs = {task: {record.seed: record for record in by_seed(records, task)} for task in tasks}
    totals = []
    for seed in set.intersection(*(set(found) for found in runs.values())):
        sizes = [record.sizes for record in dict.fromkeys(runs[task][seed] for task in tasks)]
        if any(size is None or size["system"] is None for size in sizes):
            return []
        base = sizes[0]["base"]
        totals.append(base + sum(size["system"] - base for size in sizes))
    return totals

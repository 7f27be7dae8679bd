"""The parts of the page but the images: results, curves, zeros, overlap of masks, and what is known besides."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from piggyback_tf.evaluation.page.charts import bar_chart, colour, interval, line_chart, swatch
from piggyback_tf.evaluation.page.markup import Markup, element, joined, table
from piggyback_tf.evaluation.page.pictures import Gallery
from piggyback_tf.evaluation.page.subjects import Subject, Subjects
from piggyback_tf.evaluation.results import learned_steps
from piggyback_tf.evaluation.text import ERROR_TITLES, format_bytes, format_error, interval_kind, main_error
from piggyback_tf.foreign_text import some
from piggyback_tf.packs.base_fit import short_hash
from piggyback_tf.packs.compare import MaskOverlap, compare_masks
from piggyback_tf.packs.container import PackError

# Cells are shaded in so many steps, classes of page.css.
_SHADES = 10
# So many characters of names fit into the title.
_TITLE = 60
# Names of curves; others are not drawn.
_CURVES = {"error": ("Error", "%"), "cross_entropy": ("Cross-entropy", "")}


def title(subjects: Subjects) -> str:
    """Returns what the page is called."""
    names = list(dict.fromkeys(one.task for one in subjects.tasks))
    if len(names) == 1:
        return f"Task {names[0]}"
    listed = some(names, most=4, form=str)
    return f"{len(names)} tasks: {listed}" if len(listed) <= _TITLE else f"{len(names)} tasks"


def introduction(subjects: Subjects) -> Markup:
    """Returns a sentence on what is shown."""
    bases = list(dict.fromkeys(base_name(one) for one in subjects.tasks))
    methods = list(dict.fromkeys(one.method for one in subjects.tasks))
    on = bases[0] if len(bases) == 1 else f"{len(bases)} networks"
    return element("p", f"Learned on {on} by {some(methods, form=str)}.", class_="lead")


def base_name(subject: Subject) -> str:
    """Returns the network of a task for people."""
    base = subject.base
    size = f", {base.image_size} px" if base.image_size else ""
    return f"{base.backbone} ({base.weights}{size})" if base.weights else f"{base.backbone}{size}"


def problems(subjects: Subjects) -> Markup | None:
    """Returns what was asked for and cannot be shown, or not as a whole."""
    sentences = [element("li", sentence) for sentence in (*subjects.problems, *subjects.notes)]
    return element("aside", element("ul", sentences), aria_label="Problems") if sentences else None


def results(subjects: Subjects) -> Markup:
    """Returns the table of errors with their intervals, a row a task; columns without a value are left out."""
    tasks = subjects.tasks
    judged = {one.label: judged_by(one) for one in tasks}
    kinds = dict.fromkeys(name for _, name, _ in filter(None, judged.values()))
    error = error_title(*kinds) if len(kinds) == 1 else "error %"
    most = max((found.get(f"{name}_high", found[name]) for _, name, found in filter(None, judged.values())), default=1)
    columns: dict[str, Callable[[Subject], Any]] = {
        "method": lambda one: one.method,
        f"test {error}": lambda one: format_error(one.errors.get("test")),
        # Beside the error that it shows.
        f"0 to {most:.3g} %": lambda one: _interval(judged[one.label], most),
        f"validation {error}": lambda one: format_error(one.errors.get("validation")),
        "zeros %": lambda one: "-" if one.zeros_total is None else f"{100 * one.zeros_total:.2f}",
        "adds": lambda one: format_bytes(one.size),
        "time": lambda one: f"{one.step['seconds']:.0f} s" if one.step.get("seconds") is not None else "-",
        "classes": lambda one: f"{len(one.class_names):,}" if one.class_names else "-",
        **_more_errors(tasks),
        "network": base_name,
    }
    rows = {name: [cell(one) for one in tasks] for name, cell in columns.items()}
    rows = {name: cells for name, cells in rows.items() if any(cell not in ("-", None) for cell in cells)}
    # The line on top names a network that is that of all.
    if len(set(rows.get("network", ()))) == 1:
        del rows["network"]
    body = [[_short(one), *(cells[place] for cells in rows.values())] for place, one in enumerate(tasks)]
    note = "" if kinds else "Nothing is measured yet."
    for name in kinds:
        which = f" of {error_title(name)}" if len(kinds) > 1 else ""
        note += f"In brackets, and as a line{which}: the {interval_kind({name: 0})}. "
    if any(judge and judge[0] != "test" for judge in judged.values()):
        note += " Where there is no test error, the line is that of the validation split."
    if any(one.zeros_total is not None for one in tasks):
        note += " Zeros are the part of the masked weights that a task does not use."
    if "adds" in rows:
        note += " Adds: what a task adds to the network, as it is stored."
    return joined(table("Errors and sizes", ["task", *rows], body, left=2), element("p", note.strip(), class_="note"))


def _short(subject: Subject) -> str:
    """Returns the name of a task in a row that names its method, too."""
    return subject.label.replace(f"{subject.task}, {subject.method}", subject.task, 1)


def judged_by(subject: Subject) -> tuple[str, str, Mapping[str, Any]] | None:
    """Returns the split that a task is judged by, the name of its error, and what was measured; None if nothing."""
    for split in ("test", "validation", *subject.errors):
        found = subject.errors.get(split) or {}
        if any(name.endswith("_error") for name in found):
            return split, main_error(found), found
    return None


def _more_errors(tasks: Sequence[Subject]) -> dict[str, Callable[[Subject], str]]:
    """Returns columns of the test errors that no task is judged by."""
    found = [one.errors.get("test") or {} for one in tasks]
    names = dict.fromkeys(name for errors in found for name in errors if name.endswith("_error"))
    judges = {main_error(errors) for errors in found if any(name.endswith("_error") for name in errors)}

    def column(name: str) -> Callable[[Subject], str]:
        return lambda one: format_error(one.errors.get("test"), name)

    return {f"test {error_title(name)}": column(name) for name in names if name not in judges}


def error_title(name: str) -> str:
    """Returns what an error is called, by its name in results."""
    return ERROR_TITLES.get(name, f"{name.replace('_', ' ')} %")


def _interval(judge: tuple[str, str, Mapping[str, Any]] | None, most: float) -> Any:
    if judge is None:
        return "-"
    _, name, found = judge
    return element("td", interval(found[name], found.get(f"{name}_low"), found.get(f"{name}_high"), most or 1.0))


def sequences(subjects: Subjects) -> Markup | None:
    """Returns what became of tasks that were learned in turn."""
    return joined(*(_sequence(name, own) for name, own in subjects.sequences.items())) or None


def _sequence(name: str, own: Mapping[str, Any]) -> Markup:
    tasks = own["tasks"]
    errors = {
        task: {t: found[main_error(found)] for t, found in step["errors"].items()} for task, step in learned_steps(own)
    }
    most = max((value for row in errors.values() for value in row.values()), default=1) or 1
    rows = [
        [task, *(_shaded(row[other] / most, f"{row[other]:.2f}") if other in row else "" for other in tasks)]
        for task, row in errors.items()
    ]
    told = {
        "average error %": own["measures"].get("average_error"),
        "forgetting": own["measures"].get("forgetting"),
        "backward transfer": own["measures"].get("backward_transfer"),
        "forward transfer": own["measures"].get("forward_transfer"),
    }
    measured = [[label, f"{value:.2f}"] for label, value in told.items() if value is not None]
    inferred = [
        [way, f"{found['task_id_accuracy']:.2f}", f"{found['class_incremental_error']:.2f}"]
        for way, found in (own.get("task_agnostic") or {}).items()
    ]
    return joined(
        element("h3", name),
        element(
            "div",
            table("Test error of each task in percent after each step", ["after", *tasks], rows),
            table("Measures, in points of percent", ["measure", "value"], measured) if measured else None,
            table(
                "Without being told the task",
                ["task inferred by", "task right %", "task or class wrong %"],
                inferred,
            )
            if inferred
            else None,
            class_="tables",
        ),
    )


def curves(subjects: Subjects) -> Markup | None:
    """Returns the learning curves of each task, those of several methods in one chart."""
    groups: dict[tuple[str, str], list[Subject]] = {}
    for one in subjects.tasks:
        if any(one.history.values()):
            groups.setdefault((one.source, one.task), []).append(one)
    return joined(*(_curves(group) for group in groups.values())) or None


def _curves(group: Sequence[Subject]) -> Markup:
    marked = any(one.step.get("best_epoch") for one in group)
    shades = {one.label: colour(place) for place, one in enumerate(group)}
    charts = []
    kinds = [name for name in _CURVES if any(one.history.get(f"{prefix}{name}") for one in group for prefix in _PARTS)]
    for name in kinds:
        label, unit = _CURVES[name]
        series = [
            (f"{one.label}, {part}", shades[one.label], one.history[f"{prefix}{name}"], not prefix)
            for one in group
            for prefix, part in _PARTS.items()
            if one.history.get(f"{prefix}{name}")
        ]
        best = {shades[one.label]: one.step["best_epoch"] for one in group if one.step.get("best_epoch")}
        heading = f"{label}, {unit}" if unit else label
        charts.append(
            element(
                "figure", element("figcaption", heading), line_chart(f"{label} of {group[0].task}", unit, series, best)
            )
        )
    legend = [element("li", swatch(shades[one.label]), one.label) for one in group] if len(group) > 1 else []
    legend += [
        element("li", swatch("grey"), f"validation{', with the best epoch' if marked else ''}"),
        element("li", swatch("grey", True), "training"),
    ]
    header = ["epoch", *(f"{one.label}: {name.replace('_', ' ')}" for one in group for name in _told(one))]
    columns = [one.history[name] for one in group for name in _told(one)]
    rows = [
        [epoch + 1, *(f"{values[epoch]:.4g}" if epoch < len(values) else "" for values in columns)]
        for epoch in range(max(map(len, columns)))
    ]
    caption = f"Values by epoch, {group[0].task}; errors in percent"
    return joined(
        element("h3", group[0].label if len(group) == 1 else f"{group[0].task}, {len(group)} methods"),
        element("ul", legend, class_="legend"),
        element("div", charts, class_="charts"),
        element("details", element("summary", "Values by epoch"), table(caption, header, rows)),
    )


_PARTS = {"val_": "validation", "": "training"}


def _told(subject: Subject) -> list[str]:
    """Returns the names of the curves that are drawn."""
    return [f"{prefix}{name}" for name in _CURVES for prefix in _PARTS if subject.history.get(f"{prefix}{name}")]


def zeros_by_layer(subjects: Subjects) -> Markup | None:
    """Returns how much of each layer masks drop: a chart for each task, and a table of all on one network."""
    found = []
    for base, group in by_base(subjects).items():
        with_masks = [one for one in group if one.zeros]
        if not with_masks:
            continue
        percent = {one.label: {path: 100 * part for path, part in (one.zeros or {}).items()} for one in with_masks}
        most = max(value for own in percent.values() for value in own.values()) or 1.0
        charts = [
            element("figure", element("figcaption", label), bar_chart(f"Zeros in % of {label}", colour(0), own, most))
            for label, own in percent.items()
        ]
        paths = list(dict.fromkeys(path for own in percent.values() for path in own))
        rows = [
            [path, *(_shaded(own[path] / most, f"{own[path]:.2f}") if path in own else "-" for own in percent.values())]
            for path in paths
        ]
        found += [
            element("h3", f"On {base}"),
            element("div", charts, class_="charts"),
            element(
                "details",
                element("summary", f"Table of {len(paths)} layers"),
                table(
                    f"Weights that a task does not use, in percent of the layer, on {base}", ["layer", *percent], rows
                ),
            ),
        ]
    if not found:
        return None
    note = "The part of each layer's weights that the task does not use, in percent, from input to output."
    return joined(element("p", note, class_="note"), found)


def overlaps(subjects: Subjects) -> Markup | None:
    """Returns what the masks of tasks on one network have in common."""
    found = []
    for base, group in by_base(subjects).items():
        with_masks = [one for one in group if one.pack is not None and one.pack.masks]
        if len(with_masks) > 1:
            found.append(_overlaps(base, with_masks))
    if not found:
        return None
    note = (
        "Shared zeros: of the weights that at least one of two tasks drops, those that both drop, in percent (Jaccard "
        "index); in brackets what two masks with as many zeros would share by chance."
    )
    return joined(element("p", note, class_="note"), found)


def _overlaps(base: str, group: Sequence[Subject]) -> Markup:
    totals: dict[tuple[int, int], MaskOverlap | str] = {}
    for a in range(len(group)):
        for b in range(a):
            try:
                first, second = group[a].pack, group[b].pack
                if first is None or second is None:  # Only tasks of packs are in a group.
                    raise PackError("There is no pack.")
                totals[a, b] = MaskOverlap.total(compare_masks(first, second).values())
            except PackError:
                totals[a, b] = "-"
    rows = []
    for a, one in enumerate(group):
        cells = [_overlap(totals[max(a, b), min(a, b)]) if a != b else "" for b in range(len(group))]
        rows.append([f"{a + 1} {one.label}", *cells])
    header = ["task", *(f"{place}" for place in range(1, len(group) + 1))]
    return table(f"Shared zeros of masks on {base}, in percent", header, rows)


def _overlap(total: MaskOverlap | str) -> Any:
    if isinstance(total, str):
        return total
    if not total.weights or total.only_a + total.only_b + total.neither == 0:
        return "no zeros"
    p, q = ((only + total.neither) / total.weights for only in (total.only_a, total.only_b))
    chance = p * q / (p + q - p * q)
    return _shaded(total.zeros_jaccard, f"{100 * total.zeros_jaccard:.1f} [{100 * chance:.1f}]")


def by_base(subjects: Subjects) -> dict[str, list[Subject]]:
    """Returns the tasks of each network by a name for it; two networks of one name have their hashes in it."""
    groups: dict[str, list[Subject]] = {}
    for one in subjects.tasks:
        groups.setdefault(one.base.hash or f"{one.source} {base_name(one)}", []).append(one)
    named: dict[str, list[Subject]] = {}
    names = [base_name(group[0]) for group in groups.values()]
    for digest, group in groups.items():
        name = base_name(group[0])
        unique = name if names.count(name) == 1 else f"{name}, {short_hash(digest)}"
        named.setdefault(unique, []).extend(group)
    return named


def missing(subjects: Subjects) -> Markup | None:
    """Returns what is not known of which tasks, and how to come by it."""
    sentences: dict[str, list[str]] = {}
    for one in subjects.tasks:
        for sentence in one.missing:
            sentences.setdefault(sentence, []).append(one.label)
    if not sentences:
        return None
    return element(
        "ul", [element("li", element("b", some(names, form=str)), f": {s}") for s, names in sentences.items()]
    )


def details(subjects: Subjects) -> Markup:
    """Returns what else is known of each task."""
    blocks = []
    for one in subjects.tasks:
        about = {
            "from": one.source,
            "data": one.data or (one.answers.data if one.answers else ""),
            "learned": one.created,
            "network": base_name(one),
            "hash of the network": one.base.hash,
            "classes": ", ".join(one.class_names),
            "best epoch": one.step.get("best_epoch"),
            "trained parameters": f"{one.step['trained_parameters']:,}" if one.step.get("trained_parameters") else "",
            "prepared by": one.pack.eval_augment if one.pack else "",
            "answers with": one.pack.problem if one.pack else "",
            "format of the pack": one.pack.format_version if one.pack else "",
        }
        about = {name: value for name, value in about.items() if value}
        about |= {name: json.dumps(value, ensure_ascii=False) for name, value in sorted(one.settings.items())}
        rows = [[name, value] for name, value in about.items()]
        body = table(f"What is known of {one.label}", ["", "value"], rows, left=2)
        blocks.append(element("details", element("summary", one.label), body))
    for source, left_out in subjects.left_out.items():
        rows = [
            [task, split, file["kind"], file["place"]]
            for task, splits in left_out.items()
            for split, files in splits.items()
            for file in files[:100]
        ]
        caption = f"Files that were left out of {source}, up to 100 of each split"
        body = table(caption, ["task", "split", "kind", "file"], rows, left=4)
        blocks.append(element("details", element("summary", f"Images left out of {source}"), body))
    return joined(*blocks)


def as_json(subject: Subject, own: Gallery | None) -> dict[str, Any]:
    """Returns what the page shows of a task as JSON values."""
    return {
        "task": subject.label,
        "method": subject.method,
        "source": subject.source,
        "errors": dict(subject.errors),
        "wrong_images": None if own is None else own.wrong,
        "shown_images": 0 if own is None else len(own.figures),
        "missing": subject.missing,
    }


def _shaded(part: float, text: str) -> Markup:
    """Returns a cell that is the darker, the larger its part of the whole is."""
    return element("td", text, class_=f"n h{min(_SHADES, max(0, round(_SHADES * part)))}")

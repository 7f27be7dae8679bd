"""`multilabel:PATH`: images of any number of classes, by tables `PATH/train/labels.csv`, and so in `val` and `test`."""

import csv
from pathlib import Path

from piggyback_tf.data.folder import FolderSource
from piggyback_tf.data.images import DataError
from piggyback_tf.data.sources import TaskData
from piggyback_tf.data.specs import DataRequest, register_data, task_of_splits
from piggyback_tf.data.split_folders import existing_folder, split_folders

LAYOUT = "It begins with 'image,CLASS,CLASS'; each other line is the path of another image, and 0 or 1 for each class."


@register_data("multilabel", targets=("multilabel",))
def load_multilabel(request: DataRequest) -> TaskData:
    """Answers `multilabel:PATH`; all tables name the same classes."""
    root = existing_folder(request.argument, "multilabel:")
    folders = split_folders(root, [path.parent.name for path in root.glob("*/labels.csv")])
    if "train" not in folders:
        raise DataError(f"There is no table {str(root / 'train/labels.csv')!r}, asked for in {request.spec!r}.")
    tables = {split: _read(root / name / "labels.csv") for split, name in folders.items()}
    if len(headers := {tuple(table.pop("image")) for table in tables.values()}) > 1:
        raise DataError(f"The tables of {request.spec!r} name different classes: {sorted(headers)}.")
    sources = {
        split: FolderSource(root, [f"{folders[split]}/{path}" for path in table], list(table.values()))
        for split, table in tables.items()
    }
    return task_of_splits(request, root, headers.pop(), sources, target="multilabel")


def _read(path: Path) -> dict[str, list[str]]:
    """Returns the cells behind the first one of each line, by that one."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = [line for line in csv.reader(stream, strict=True) if line]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"Table {str(path)!r} cannot be read: {error}.") from error
    found: dict[str, list[str]] = {}
    for line in lines:
        right = {*line[1:]} <= {"0", "1"} if found else line[0] == "image" and len(line) > 2
        if not right or line[0] in found or len(line) != len(lines[0]):
            raise DataError(f"Table {str(path)!r} has the line {','.join(line)!r}. {LAYOUT}")
        found[line[0]] = line[1:]
    if len(found) < 2:
        raise DataError(f"Table {str(path)!r} has no images.")
    return found

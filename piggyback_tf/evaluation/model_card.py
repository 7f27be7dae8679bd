"""The README.md of a repository of packs on the Hugging Face Hub, its model card: not the README of this project.

Only what stands between two marker lines is written anew; the rest belongs to the user, a licence for instance.
"""

import dataclasses
import html
import re
import statistics
from typing import TYPE_CHECKING, Any

from piggyback_tf.evaluation.text import (
    ERROR_TITLES,
    format_bytes,
    format_error,
    interval_kind,
    main_error,
    markdown_table,
)
from piggyback_tf.foreign_text import escaped, one_line, short_hash
from piggyback_tf.packs import TaskPack
from piggyback_tf.targets import TARGETS, USUAL

if TYPE_CHECKING:
    from huggingface_hub import RepoCard

BEGIN = "<!-- piggyback_tf: begin; 'push' writes anew what stands between these two lines -->"
END = "<!-- piggyback_tf: end -->"
_TAGS = ("piggyback", "task-pack")
# By the name of an error: what the Hub calls 100 % less it, and what people do.
_METRICS = {
    "top1_error": ("accuracy", "Top-1 accuracy"),
    "mean_iou_error": ("mean_iou", "Mean IoU"),
    "mean_precision_error": ("mean_average_precision", "Mean average precision"),
    "ap_error": ("mean_average_precision", "AP of COCO"),
}
_ABOUT = (
    "Tasks for pretrained networks that stay as they are, learned with `piggyback_tf`. A task pack holds what a task "
    "adds to its network: a binary or ternary mask over the weights ([Piggyback](https://arxiv.org/abs/1801.06519)), "
    "batch norm if it was trained, and a head. It holds no weights of the network, and is refused on any network "
    "but its own, which is told by the SHA-256 of its weights."
)


class CardError(ValueError):
    """A README.md that cannot be filled in; the message says why."""


@dataclasses.dataclass(frozen=True)
class PackFile:
    """A pack in the repository.

    Attributes:
        name: The file's name.
        size: Its bytes.
        pack: Its content; None if it cannot be read.
    """

    name: str
    size: int
    pack: TaskPack | None


def model_card(repository: str, files: list[PackFile], existing: str | None = None) -> str:
    """Returns the model card of a repository.

    Args:
        repository: `"OWNER/NAME"`.
        files: All packs in the repository.
        existing: The present README.md, if there is one. One without text gets it; in any other, what stands between
            the lines `BEGIN` and `END` is replaced. Of its YAML all is kept that is not about these packs.

    Raises:
        CardError: If the present README.md has text and not these two lines, or its YAML cannot be read.
    """
    name = repository.rpartition("/")[2]
    card = _parse(existing or "")
    body = "\n".join([BEGIN, *_body(repository, files), END])
    if not card.text.strip():
        card.text = f"\n# {escaped(name)}\n\n{body}\n"
    else:
        card.text = _replace_between_markers(card.text, body)
    for key, value in _metadata(name, files, card.data.to_dict()).items():
        card.data[key] = value
    return card.content


def _parse(text: str) -> "RepoCard":
    from huggingface_hub import RepoCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    try:
        # A card without YAML would be complained of.
        return RepoCard(text if REGEX_YAML_BLOCK.search(text) else "---\n{}\n---\n" + text)
    except Exception as error:  # YAML's own errors among them.
        raise CardError(f"the YAML in front of it cannot be read: {one_line(error)}") from error


def _replace_between_markers(text: str, body: str) -> str:
    lines = text.splitlines()
    places = [[place for place, line in enumerate(lines) if line.strip() == marker] for marker in (BEGIN, END)]
    if [len(found) for found in places] != [1, 1] or places[0] > places[1]:
        raise CardError(
            "it was not written by this command. Put these two lines into it, where the tasks shall be listed, or "
            f"remove it:\n{BEGIN}\n{END}"
        )
    (begin,), (end,) = places
    return "\n".join([*lines[:begin], body, *lines[end + 1 :]]) + "\n"


def _metadata(name: str, files: list[PackFile], old: dict[str, Any]) -> dict[str, Any]:
    """Returns the YAML's entries that are about the packs; those that the user may have chosen are kept."""
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    packs = [file.pack for file in files if file.pack]
    kinds = [_hub_task(pack) for pack in packs]
    tags = old.get("tags") or []
    tags = tags if isinstance(tags, list) else [tags]
    results = [
        EvalResult(
            task_type=kind,
            task_name=kind.replace("-", " ").capitalize(),
            dataset_type=escaped(pack.task),
            dataset_name=f"{escaped(pack.task)}, {pack.errors['test']['images']} test images",
            dataset_split="test",
            metric_type=_METRICS[error][0],
            metric_name=_METRICS[error][1],
            metric_value=round(1 - pack.errors["test"][error] / 100, 6),
        )
        for pack, kind in zip(packs, kinds, strict=True)
        for error in _METRICS
        if {"images", error} <= pack.errors.get("test", {}).keys()
    ]
    index = old.get("model-index") or []
    others = [entry for entry in index if not isinstance(entry, dict) or entry.get("name") != name]
    return {
        "library_name": old.get("library_name", "piggyback_tf"),
        # There is one; of packs of several kinds it is the most frequent.
        "pipeline_tag": old.get("pipeline_tag", statistics.mode(kinds or [TARGETS[USUAL].hub_task])),
        "tags": list(dict.fromkeys([*tags, *_TAGS, *(escaped(pack.base_name) for pack in packs)])),
        "model-index": others + (eval_results_to_model_index(name, results) if results else []) or None,
    }


def _body(repository: str, files: list[PackFile]) -> list[str]:
    header = ["task", "base", "base hash", "classes", "test error %", "zeros %", "size"]
    lines = [_ABOUT, "", *markdown_table(header, [_row(file) for file in files], left=3), ""]
    lines += [
        f"*Test error*: {'; '.join(_errors(files)) or 'not measured'}. *Zeros*: the part of the masked weights that "
        "the task does not use. *Base hash*: the first digits of the SHA-256.",
        "",
        "```bash",
        f"python -m piggyback_tf pull --repo {repository} --output_dir packs",
        "```",
        "",
    ]
    readable = next((file for file in files if file.pack), None)
    return lines + (_example(readable.name, readable.pack) if readable else [])


def _hub_task(pack: TaskPack) -> str:
    """Returns what the Hub calls such tasks; of a kind that is not known here, as it calls the usual ones."""
    return TARGETS.get(pack.problem, TARGETS[USUAL]).hub_task


def _errors(files: list[PackFile]) -> list[str]:
    """Returns what the test errors of packs are, each once."""
    measured = [file.pack.errors["test"] for file in files if file.pack and "test" in file.pack.errors]
    names = dict.fromkeys(main_error(errors) for errors in measured if format_error(errors) != "-")
    return [
        f"{ERROR_TITLES.get(name, name).removesuffix(' %').removesuffix(' error')}, with {interval_kind({name: 0})}"
        for name in names
    ]


def _row(file: PackFile) -> list[str]:
    pack = file.pack
    if pack is None:
        return [_markdown(file.name), "cannot be read", "-", "-", "-", "-", format_bytes(file.size)]
    return [
        _markdown(pack.task),
        _markdown(f"{pack.base_name} ({pack.base_weights}, {pack.image_size} px)"),
        _markdown(short_hash(pack.base_hash)),
        f"{len(pack.class_names):,}",
        format_error(pack.errors.get("test")),
        f"{100 * pack.zeros_total:.2f}" if pack.masks else "-",
        format_bytes(file.size),
    ]


def _example(file: str, pack: TaskPack) -> list[str]:
    """Returns the lines that load one of the packs in Python."""
    from piggyback_tf.backbones.own import is_model_file
    from piggyback_tf.backbones.registry import get_entry, list_backbones
    from piggyback_tf.backbones.tensor_files import is_repository

    name, size = pack.base_name, pack.image_size
    if is_model_file(name):
        backbone = f"pb.load_backbone({f'FOLDER/{name}'!r}, image_size={size})"
    elif name not in list_backbones():
        backbone = f"pb.Backbone.from_model(model)  # {escaped(name)}, as the task's author has it"
    elif pack.base_weights in get_entry(name).weights or is_repository(pack.base_weights):
        seed = f", seed={pack.settings.get('seed', 0)!r}" if pack.base_weights == "random" else ""
        backbone = f"pb.load_backbone({name!r}, weights={pack.base_weights!r}, image_size={size}{seed})"
    else:
        backbone = f"pb.load_backbone({name!r}, weights={f'FOLDER/{pack.base_weights}'!r}, image_size={size})"
    answers = TARGETS.get(pack.problem, TARGETS[USUAL]).answer
    height, width = pack.image_shape
    return [
        "```python",
        "import piggyback_tf as pb",
        "",
        f"backbone = {backbone}",
        f"bank = pb.TaskBank(backbone).add({f'packs/{file}'!r})",
        f"{answers} = bank.predict(images, task={pack.task!r})  # images: [N, {height}, {width}, 3], RGB in [0, 255]",
        "```",
    ]


def _markdown(text: str) -> str:
    """Returns a text that Markdown shows as it is, neither as HTML nor as a link."""
    return re.sub(r"([\\`*\[\]])", r"\\\1", html.escape(escaped(text), quote=False))

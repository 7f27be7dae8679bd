"""Answers to images by a served model, in a pipeline of Apache Beam; docs/scale.md says what to do with it.

    python beam_predict.py --export=served/1 --images='photos/*.jpg' --tasks=birds,plates --output=answers

Writes `answers-00000-of-00003.jsonl` and so on, with a line for each image and task, in no order:
`{"image": PATH, "task": "birds", "labels": ["owl", ...], "scores": [0.91, ...]}`, or with `"error"`. All other flags
are Beam's, such as `--runner=DataflowRunner`. Images and answers may be wherever Beam reads and writes, such as
`gs://`. The workers load the export, and must see its path. Needs `apache-beam` and `tensorflow`, and nothing of
`piggyback_tf`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import tensorflow as tf
from apache_beam.io import fileio
from apache_beam.io.filesystems import FileSystems
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions

# The signature of tasks of classes: it decodes and prepares files as the training did.
SIGNATURE = "encoded"


class TaskHandler(ModelHandler[tuple[str, str], dict[str, Any], Any]):
    """Answers pairs of an image's path and a task by an exported SavedModel.

    Args:
        export: The folder of a version of the export.
        max_batch_size: How many pairs are answered at once.
    """

    def __init__(self, export: str, max_batch_size: int = 32):
        super().__init__(max_batch_size=max_batch_size)
        self._export = export

    def load_model(self) -> Any:
        """Returns the SavedModel; Beam loads it once for a process."""
        model = tf.saved_model.load(self._export)
        if SIGNATURE not in model.signatures:
            raise ValueError(f"{self._export!r} has no signature {SIGNATURE!r}: it serves no task of classes.")
        return model

    def run_inference(
        self, batch: Sequence[tuple[str, str]], model: Any, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[dict[str, Any]]:
        """Returns a line of the answer for each pair; a batch may mix tasks."""
        files = [_content(path) for path, _ in batch]
        found = model.signatures[SIGNATURE](
            image_bytes=tf.constant([content or b"" for content in files]),
            task=tf.constant([task for _, task in batch]),
        )
        found = {name: value.numpy() for name, value in found.items()}
        return [_line(*pair, files[row] is None, found, row) for row, pair in enumerate(batch)]


def _content(path: str) -> bytes | None:
    try:
        with FileSystems.open(path) as file:
            return file.read()
    except OSError:
        return None


def _line(path: str, task: str, missing: bool, found: Mapping[str, Any], row: int) -> dict[str, Any]:
    line: dict[str, Any] = {"image": path, "task": task}
    if missing:
        return line | {"error": "The file cannot be read."}
    if not found["task_ok"][row]:
        return line | {"error": f"The export has no task {task!r} of classes."}
    if not found["image_ok"][row]:
        return line | {"error": "The file is no image that the export decodes."}
    # A task with fewer classes than are returned has empty labels behind them.
    answers = [
        (label.decode(), round(float(score), 6))
        for label, score in zip(found["labels"][row], found["scores"][row], strict=True)
        if label
    ]
    return line | {"labels": [label for label, _ in answers], "scores": [score for _, score in answers]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", required=True, help="folder of a version of the export, such as served/1")
    parser.add_argument("--images", required=True, help="a pattern of paths")
    parser.add_argument("--tasks", required=True, help="names of tasks, with commas between")
    parser.add_argument("--output", required=True, help="how the names of the answers begin")
    parser.add_argument("--batch_size", type=int, default=32, help="images that are answered at once, at most")
    own, others = parser.parse_known_args()
    if not FileSystems.exists(FileSystems.join(own.export, "saved_model.pb")):
        parser.error(f"--export={own.export}: this is no version of an export, such as served/1.")
    tasks = own.tasks.split(",")
    with beam.Pipeline(options=PipelineOptions(others, save_main_session=True)) as pipeline:
        _ = (
            pipeline
            | "find images" >> fileio.MatchFiles(own.images, fileio.EmptyMatchTreatment.DISALLOW)
            | "pair with tasks" >> beam.FlatMap(lambda found: [(found.path, task) for task in tasks])
            | "spread" >> beam.Reshuffle()
            | "answer" >> RunInference(TaskHandler(own.export, own.batch_size))
            | "to JSON" >> beam.Map(json.dumps)
            | "write" >> beam.io.WriteToText(own.output, file_name_suffix=".jsonl")
        )


if __name__ == "__main__":
    main()

"""Measures networks: runs them on test images and counts what they get wrong, and what an image costs them.

Here they are run. What follows from labels and answers, as numbers, is computed in `evaluation/`.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import Original, Source, make_dataset, original_batches, parse_augment, surface_data_errors
from piggyback_tf.evaluation import top_k_hits
from piggyback_tf.evaluation.answers import AnswerLog
from piggyback_tf.evaluation.task_agnostic import normalised_entropy, task_agnostic_measures
from piggyback_tf.packs import TaskPack
from piggyback_tf.problems import Problem
from piggyback_tf.sequences.superposition import Superposition

# Prepared images, targets, and the targets as they are in the source, where a problem judges those.
Batch = tuple[Any, Any, Sequence[Original]]


def measure(
    network: keras.Model,
    problem: Problem,
    augment: str,
    batches: Iterable[Batch],
    log: AnswerLog | None = None,
) -> tuple[dict[str, Any], str]:
    """Returns what was measured of a network on a split, and a digest of all its answers.

    Args:
        network: From images to logits or probabilities.
        problem: What it finds.
        augment: How the images are prepared.
        batches: All images of the split, from `measured_batches`.
        log: Notes the answers that are counted, for those who want to see them.
    """
    digest, forward = hashlib.sha256(), _compile(network)

    def predict(images: tf.Tensor) -> np.ndarray:
        scores = forward(images).numpy()
        digest.update(scores.tobytes())
        return scores

    return measure_answers(predict, problem, augment, batches, log), digest.hexdigest()


def measured_batches(
    problem: Problem, source: Source, augment: str, *, batch_size: int, **cache: Any
) -> Iterator[Batch]:
    """Yields the images of a split, prepared for evaluation, their targets, and what is judged beside those.

    Args:
        problem: What is to be found. If it judges the images as they are in the source, each is decoded once, and none
            is cached.
        source: The split.
        augment: How its images are prepared.
        batch_size: Images a batch.
        **cache: What `make_dataset` takes of caches.
    """
    if problem.judges_originals:
        yield from original_batches(source, augment, batch_size=batch_size)
        return
    dataset = make_dataset(source, augment, batch_size=batch_size, training=False, **cache)
    for images, targets in dataset:
        yield images, targets, ()


def measure_answers(
    predict: Callable[[tf.Tensor], np.ndarray],
    problem: Problem,
    augment: str,
    batches: Iterable[Batch],
    log: AnswerLog | None = None,
) -> dict[str, Any]:
    """Returns what was measured of answers to the images of a split.

    Args:
        predict: From a batch of images to logits or probabilities, or what `TaskBank.predict` returns.
        problem: What is to be found.
        augment: As of `measure`.
        batches: As of `measure`.
        log: As of `measure`.
    """
    return problem.measured(count_answers(predict, problem, augment, batches, log))


def count_answers(
    predict: Callable[[tf.Tensor], np.ndarray],
    problem: Problem,
    augment: str,
    batches: Iterable[Batch],
    log: AnswerLog | None = None,
) -> np.ndarray:
    """Returns the numbers of each image of a split that its error is made of, `[N, ...]`; see `Problem.count`.

    Args:
        predict: As of `measure_answers`.
        problem: What is to be found.
        augment: As of `measure`.
        batches: As of `measure`.
        log: As of `measure`.

    Raises:
        ValueError: If there are no images.
    """
    operations, counts = parse_augment(augment), []
    with surface_data_errors():
        for images, targets, originals in batches:
            answers, targets = predict(images), np.asarray(targets)
            counts.append(problem.count_originals(answers, targets, originals, operations))
            if log is not None:
                log.note(targets, answers, counts[-1], originals, operations)
    if not counts:
        raise ValueError("There are no images to measure an error on.")
    return np.concatenate(counts)


def measure_task_agnostic(
    network: Callable[[str], keras.Model],
    batches: Mapping[str, tf.data.Dataset],
    backbone: Backbone,
    packs: Sequence[TaskPack],
    *,
    probabilities: bool,
) -> dict[str, dict[str, Any]]:
    """Measures all tasks on images that do not say of which task they are; each image by itself.

    Two ways of inferring the task. By `"entropy"`: every task's network answers, and that of the lowest entropy, each
    divided by the logarithm of its number of classes, is believed. By `"gradient"`, where tasks are masks over one
    base: see `Superposition`. (SupSup infers the task from one image, too, and then answers for a batch of its task.)

    Args:
        network: Returns the network of a task. One is in memory at a time.
        batches: The test images and labels of each task, by task in the order of learning.
        backbone: The base.
        packs: The tasks' packs in the same order; none if they are no packs.
        probabilities: Whether the networks answer with probabilities; with logits otherwise.

    Returns:
        What `task_agnostic_measures` returns, by way; only the ways that the tasks have.
    """
    counts, entropies, hits = {}, [], []
    with surface_data_errors():
        for task, own in batches.items():
            labels = np.concatenate([labels.numpy() for _, labels in own])
            counts[task] = len(labels)
            scores = _scores(network(task), batches)
            hits.append(top_k_hits(labels, scores[task], 1))
            logits = np.concatenate(list(scores.values()))
            if probabilities:  # Logarithms of probabilities are logits; one that underflowed is next to nothing.
                logits = np.log(np.maximum(logits, np.finfo(np.float32).tiny))
            entropies.append(normalised_entropy(logits))
        costs = {"entropy": np.stack(entropies, axis=1)}
        if any(pack.masks for pack in packs):
            images = functools.reduce(tf.data.Dataset.concatenate, batches.values()).map(lambda images, _: images)
            costs["gradient"] = Superposition(backbone, packs).gradient(images)
    return {way: task_agnostic_measures(counts, cost, np.concatenate(hits)) for way, cost in costs.items()}


def multiply_adds(model: keras.Model) -> int:
    """Returns how many multiplications with an addition an image takes: half of its floating point operations.

    Args:
        model: From images `[B, S, S, 3]`.
    """
    function = tf.function(lambda images: model(images, training=False))
    # Keras runs convolutions in groups as functions of their own, into which the profiler does not look. In this mode
    # they become part of the outer one.
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        function = function.get_concrete_function(tf.TensorSpec([1, *model.input_shape[1:]], tf.float32))
    finally:
        tf.config.run_functions_eagerly(before)
    options = tf.compat.v1.profiler.ProfileOptionBuilder(
        tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    ).with_empty_output()
    profile = tf.compat.v1.profiler.profile(function.graph, options=options.build())
    return int(profile.total_float_ops) // 2


def _scores(network: keras.Model, batches: Mapping[str, tf.data.Dataset]) -> dict[str, np.ndarray]:
    """Returns what a network answers to the images of each task."""
    forward = _compile(network)
    return {task: np.concatenate([forward(images).numpy() for images, _ in found]) for task, found in batches.items()}


def _compile(network: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a network as a function of batches of any size, traced once."""
    spec = tf.TensorSpec([None, *network.input_shape[1:]], tf.uint8)
    return tf.function(lambda images: network(images, training=False), input_signature=[spec], jit_compile=False)

"""Signatures of tasks that find something else than the class of an image, by what their problem says of its answers.

For a problem whose signature is called NAME there are NAME, which takes image files and answers at the size of each,
and for every size of prepared images NAME_HEIGHTxWIDTH. All tasks of a problem and a size share the latter.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

import tensorflow as tf

from piggyback_tf.data import TARGETS
from piggyback_tf.packs import TaskPack
from piggyback_tf.problems import PNG, PROBLEMS, AnswerSpec, Problem, WayBack, head_logits

from ..shared.errors import ExportError
from ..shared.graph import good_images
from ..shared.packs import head_of
from .decode import decode_batch, upright_sides
from .headers import Headers, read_headers
from .network import ServedNetwork
from .options import ExportOptions
from .preparation import parse_preparation, way_back
from .requests import check_images_and_tasks, check_same_length
from .served_tasks import ServedTasks
from .task_tables import Family, TaskTables, family_of

Outputs = dict[str, tf.Tensor]
Signatures = dict[str, tuple[Callable[..., Outputs], list[tf.TensorSpec]]]

# What answers image files for tasks of classes.
ENCODED = "encoded"


def by_problem(families: Collection[Family]) -> dict[str, list[Family]]:
    """Returns the families of each problem but that of classes."""
    found: dict[str, list[Family]] = {}
    for family in families:
        if not family.of_classes:
            found.setdefault(family.problem, []).append(family)
    return found


def check_is_served(pack: TaskPack) -> None:
    """Checks that a SavedModel can hold a task.

    Raises:
        ExportError: If its problem has no signature.
    """
    named = [name for name in PROBLEMS.names() if PROBLEMS[name].signature is not None]
    first = [name for name in PROBLEMS.names() if TARGETS[name].served_first]
    if pack.problem not in named and not (pack.problem in first and family_of(pack).of_classes):
        raise ExportError(
            f"Task {pack.task!r} finds {TARGETS.get(pack.problem, pack.problem)} with a head {head_of(pack).kind!r}, "
            "and SavedModels have no signature for that. They hold tasks of the problems "
            f"{', '.join([*first, *named])}; a TaskBank takes this one."
        )


def shape_of_images(family: Family, image_size: int) -> tuple[int, int]:
    """Returns height and width of the prepared images of a family.

    Args:
        family: The family.
        image_size: The side of the base's images.
    """
    return family.spec.image_shape or (image_size, image_size)


def file_signature(family: Family) -> str:
    """Returns the name of the signature that answers image files for the tasks of a family."""
    return ENCODED if family.of_classes else str(PROBLEMS[family.problem].signature)


def signature_for(problem: str, image_shape: tuple[int, int]) -> str:
    """Returns the name of the signature for prepared images; that for files is `file_signature`."""
    return f"{PROBLEMS[problem].signature}_{image_shape[0]}x{image_shape[1]}"


@dataclasses.dataclass(frozen=True)
class Preparations:
    """The ways in which the images of some tasks are prepared.

    Attributes:
        preparations: Augmentation strings.
        places: For each string of `TaskTables.preparations` its place among these; None if they are the same.
    """

    preparations: tuple[str, ...]
    places: tuple[int, ...] | None

    def of(self, preparation: tf.Tensor) -> tf.Tensor:
        """Returns the places of `TaskTables.preparation`, int32 `[B]`, among these."""
        return preparation if self.places is None else tf.gather(tf.constant(self.places), preparation)


def chosen_preparations(tables: TaskTables, families: Collection[Family]) -> Preparations:
    """Returns how the images of the tasks of some families are prepared."""
    pairs = zip(tables.family_of, tables.preparation.tolist(), strict=True)
    used = sorted({place for family, place in pairs if family in families})
    if used == list(range(len(tables.preparations))):
        return Preparations(tables.preparations, None)
    places = tuple(used.index(place) if place in used else 0 for place in range(len(tables.preparations)))
    return Preparations(tuple(tables.preparations[place] for place in used), places)


class ProblemSignatures:
    """The signatures of the tasks of one problem.

    Args:
        tasks: All tasks, in the graph.
        base: The base.
        tables: All tasks.
        options: What images come as.
        problem: Name of the problem.
        families: The families of its tasks.
    """

    def __init__(
        self,
        tasks: ServedTasks,
        base: ServedNetwork,
        tables: TaskTables,
        options: ExportOptions,
        problem: str,
        families: Sequence[Family],
    ):
        self._tasks, self._name, self._families = tasks, problem, families
        self._problem = PROBLEMS[problem]
        self._max_pixels, self._width = options.max_image_pixels, tables.most_classes(families)
        shapes: dict[tuple[int, int], list[Family]] = {}
        for family in families:
            shapes.setdefault(shape_of_images(family, base.spec.image_size), []).append(family)
        self._sizes = [
            _OneSize(tasks, base, tables, options, self._problem((), shape), members, self._width)
            for shape, members in shapes.items()
        ]

    def signatures(self) -> Signatures:
        """Returns by name what each signature does, and what it takes."""
        names = tf.TensorSpec([None], tf.string, "task")
        found: Signatures = {}
        for size in self._sizes:
            images = tf.TensorSpec([None, *size.shape, 3], size.dtype, "images")
            found[signature_for(self._name, size.shape)] = (size.prepared, [images, names])
        files = tf.TensorSpec([None], tf.string, "image_bytes")
        return found | {file_signature(self._families[0]): (self._files, [files, names])}

    def _files(self, image_bytes: tf.Tensor, task: tf.Tensor) -> Outputs:
        image_bytes, task = check_same_length(image_bytes, task)
        places, headers = self._tasks.find(task), read_headers(image_bytes, self._max_pixels)
        known, image_ok = self._tasks.known(places, self._families), tf.zeros_like(places, tf.bool)
        outputs = _missing(self._problem.file_answers, {"classes": self._width}, tf.shape(task)[0])
        for size in self._sizes:
            chosen = self._tasks.known(places, size.families)
            # The file of a task that is not known is decoded all the same, so that `image_ok` tells of the file alone.
            rows = tf.where(chosen if size is not self._sizes[0] else chosen | ~known)[:, 0]
            found, good = size.files(tf.gather(image_bytes, rows), tf.gather(places, rows), _rows_of(headers, rows))
            image_ok = tf.tensor_scatter_nd_update(image_ok, rows[:, None], good)
            outputs = _updated(outputs, rows, found)
        return {**outputs, "task_ok": known, "image_ok": image_ok}


class _OneSize:
    """The tasks of one problem whose prepared images have one size.

    Args:
        tasks, base, tables, options: As of `ProblemSignatures`.
        problem: The problem, for images of that size.
        families: The families of these tasks.
        classes: How many classes the task has that has the most, of all of the problem.
    """

    def __init__(
        self,
        tasks: ServedTasks,
        base: ServedNetwork,
        tables: TaskTables,
        options: ExportOptions,
        problem: Problem,
        families: Sequence[Family],
        classes: int,
    ):
        self.shape, self.dtype, self.families = problem.image_shape, tf.as_dtype(options.image_dtype), families
        self._tasks, self._base, self._problem = tasks, base, problem
        self._chains, self._max_pixels = chosen_preparations(tables, families), options.max_image_pixels
        self._sides = {"height": self.shape[0], "width": self.shape[1], "classes": classes}
        # The place in `families` of each family of the tables.
        self._branches = [families.index(each) if each in families else 0 for each in tables.families]
        # Traced once: both signatures call the same function of the graph.
        specs = [tf.TensorSpec([None, *self.shape, 3], self.dtype), tf.TensorSpec([None], tf.int32)]
        self._answer_rows = tf.function(self._answer_mixed, specs, autograph=False)

    def prepared(self, images: tf.Tensor, task: tf.Tensor) -> Outputs:
        """Answers prepared images."""
        images, task = check_images_and_tasks(images, task, self.shape)
        places = self._tasks.find(task)
        known = self._tasks.known(places, self.families)
        return {**self._answer_rows(images, places), "task_ok": known, "image_ok": good_images(images)}

    def files(self, contents: tf.Tensor, places: tf.Tensor, headers: Headers) -> tuple[Outputs, tf.Tensor]:
        """Answers image files, each at its own size.

        Args:
            contents: The files, string `[B]`.
            places: Their tasks, int32 `[B]`; those of other families or -1 get no answer.
            headers: The headers of the files.

        Returns:
            The answers, and which files are good, bool `[B]`.
        """
        known = self._tasks.known(places, self.families)
        chosen = self._chains.of(tf.gather(self._tasks.preparation, self._tasks.or_first(places, self.families)))
        images, good = decode_batch(
            contents, chosen, self._chains.preparations, self.shape, self._max_pixels, headers=headers
        )
        answers = self._answer_rows(tf.cast(images, self.dtype), tf.where(known & good, places, -1))
        rows, sides = tf.where(known & good)[:, 0], upright_sides(headers)
        chains = [parse_preparation(augment) for augment in self._chains.preparations]

        def answer_file(row: tf.Tensor) -> Outputs:
            ways = [lambda chain=chain: way_back(sides[row], chain) for chain in chains]
            scale, offset = tf.switch_case(chosen[row], ways) if len(ways) > 1 else ways[0]()
            own = {name: value[row] for name, value in answers.items()}
            return self._problem.file_answer(own, WayBack(sides[row], scale, offset))

        specs = self._problem.file_answers
        signature = {name: tf.TensorSpec(self._shape(spec), dtype_of(spec)) for name, spec in specs.items()}
        # One at a time: an answer may be as large as the file's image.
        found = tf.map_fn(answer_file, rows, fn_output_signature=signature, parallel_iterations=1)
        return _updated(_missing(specs, self._sides, tf.shape(places)[0]), rows, found), good

    def _answer_mixed(self, images: tf.Tensor, task: tf.Tensor) -> Outputs:
        """Returns the answers by name, of what cannot be answered `AnswerSpec.missing`."""
        good = self._tasks.known(task, self.families) & good_images(images)
        rows = tf.where(good)[:, 0]
        tasks, group = tf.unique(tf.gather(task, rows))

        def answer_next(index: tf.Tensor, answers: Outputs) -> tuple[tf.Tensor, Outputs]:
            """Sends the rows of one task through the network."""
            members = tf.boolean_mask(rows, group == index)
            found = self._answer(tasks[index], tf.cast(tf.gather(images, members), tf.float32))
            return index + 1, _updated(answers, members, found)

        start = _missing(self._problem.answers, self._sides, tf.shape(task)[0])
        _, answers = tf.while_loop(
            lambda index, _: index < tf.size(tasks), answer_next, (tf.constant(0), start), parallel_iterations=1
        )
        return answers

    def _answer(self, task: tf.Tensor, images: tf.Tensor) -> Outputs:
        """Returns the answers of one task."""
        weights = self._tasks.base_weights(task)

        def of(family: Family) -> Outputs:
            if family.spec.is_dense:
                features = self._base.features(*weights, images)
                logits = head_logits(features, *self._tasks.dense_head(task, features.shape[1])[:2])
            else:
                graph = self._base.heads[family.spec]
                logits = graph.logits(*weights, self._tasks.head(task, graph.length), images)
            answers = self._problem.answer(logits)
            return {name: self._padded(answers[name], spec) for name, spec in self._problem.answers.items()}

        ways = [lambda family=family: of(family) for family in self.families]
        if len(ways) == 1:
            return ways[0]()
        branch = tf.gather(tf.constant(self._branches), self._tasks.family_of(task))
        return tf.switch_case(branch, ways)

    def _padded(self, answer: tf.Tensor, spec: AnswerSpec) -> tf.Tensor:
        """Returns answers `[B, ...]` of a task as wide as those of the task with the most classes."""
        shape = self._shape(spec)
        there = tf.shape(answer)[1:]
        padding = tf.stack([[0, 0], *([0, side - there[axis]] for axis, side in enumerate(shape))])
        if "classes" in spec.shape:
            answer = tf.pad(answer, padding, constant_values=tf.constant(spec.missing, answer.dtype))
        return tf.ensure_shape(answer, [None, *shape])

    def _shape(self, spec: AnswerSpec) -> list[int]:
        return shape_of(spec, self._sides)


def dtype_of(spec: AnswerSpec) -> tf.DType:
    """Returns the dtype of an answer in a graph."""
    return tf.string if spec.dtype == PNG else tf.as_dtype(spec.dtype)


def shape_of(spec: AnswerSpec, sides: Mapping[str, int]) -> list[int]:
    """Returns the shape of an answer, where `sides` has the numbers for the names in it."""
    return [side if isinstance(side, int) else sides[side] for side in spec.shape]


def _missing(specs: Mapping[str, AnswerSpec], sides: Mapping[str, int], count: tf.Tensor) -> Outputs:
    """Returns answers `[count, ...]` of what cannot be answered."""
    found = {}
    for name, spec in specs.items():
        dtype, shape = dtype_of(spec), shape_of(spec, sides)
        value = tf.constant("" if dtype == tf.string else spec.missing, dtype)
        found[name] = tf.ensure_shape(tf.fill(tf.stack([count, *shape]), value), [None, *shape])
    return found


def _updated(answers: Outputs, rows: tf.Tensor, found: Mapping[str, tf.Tensor]) -> Outputs:
    """Returns answers with those of some rows."""
    return {name: tf.tensor_scatter_nd_update(value, rows[:, None], found[name]) for name, value in answers.items()}


def _rows_of(headers: Headers, rows: tf.Tensor) -> Headers:
    return Headers(*(tf.gather(part, rows) for part in (headers.kind, headers.sides, headers.orientation)))

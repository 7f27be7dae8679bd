"""Paths through the modules of a network, and the tournaments in which they compete."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.methods.parts.added_loss import ExtendedModel
from piggyback_tf.methods.parts.separate_gradients import PassingLayer, summed

POPULATION_NAME = "population"


class Population(PassingLayer):
    """Holds the paths that compete, and how far their tournaments are.

    All of it is in weights, so that a training that goes on knows it. What is drawn is a function of seed and
    tournament.

    Args:
        seed: Decides what is drawn.
        paths: How many paths there are.
        stages: How many stages they go through.
        modules: How many modules each stage has.
        active: Through how many of them a path goes, at most: genes of a path may be the same.
        steps: Steps that a path is trained for in a tournament.
        **kwargs: As for `keras.layers.Layer`.

    Attributes:
        genes: The modules of each path, int64 `[paths, stages, active]`.
        fitness: The mean loss of each path in the steps of its last tournament, below 0; -inf before.
        gates: 1 for the modules on the path that is trained, float32 `[stages, modules]`.
        turn: Steps of tournaments so far.
        gained: The sum of the losses of this path in this tournament so far, below 0.
        searches: 1 while there are tournaments.
    """

    def __init__(self, seed: int, paths: int, stages: int, modules: int, active: int, steps: int, **kwargs: Any):
        super().__init__(**kwargs)
        self._seed, self._paths, self._stages, self._modules = seed, paths, stages, modules
        self._active, self._steps = active, steps

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        del input_shape
        shape = (self._paths, self._stages, self._active)
        # GPUs have no variables of int32.
        self.genes = self._add("genes", shape, 0, "int64")
        self.genes.assign(self._random(0).integers(self._modules, size=shape))
        self.fitness = self._add("fitness", (self._paths,), -np.inf)
        self.gates = self._add("gates", (self._stages, self._modules), 0)
        self.turn = self._add("turn", (), 0, "int64")
        self.gained, self.searches = self._add("gained", (), 0), self._add("searches", (), 0)
        self.open(0)

    def _add(self, name: str, shape: tuple[int, ...], value: float, dtype: str = "float32") -> keras.Variable:
        return self.add_weight(
            shape=shape,
            initializer=keras.initializers.Constant(value),
            dtype=dtype,
            autocast=False,
            trainable=False,
            # All devices see the sum of what each of them lost.
            aggregation="only_first_replica",
            name=name,
        )

    def _random(self, number: int) -> np.random.Generator:
        # The 3 keeps this apart from orders of images and draws of kept ones, which start from the seed, too.
        return np.random.default_rng([self._seed, number, 3])

    def read(self, name: str) -> np.ndarray:
        """Returns a copy of one of the attributes."""
        return np.array(keras.ops.convert_to_numpy(getattr(self, name)))

    def open(self, path: int) -> None:
        """Lets a path through and no other module."""
        gates = np.zeros((self._stages, self._modules), np.float32)
        np.put_along_axis(gates, self.read("genes")[path], 1.0, axis=1)
        self.gates.assign(gates)

    def best(self) -> int:
        """Returns the path that was fittest in its last tournament."""
        return int(self.read("fitness").argmax())

    def gain(self, loss: tf.Tensor) -> None:
        """Adds the loss of a step, or what is a part of it on one of several devices."""
        (total,) = summed([loss])
        self.gained.assign_sub(tf.cast(total, tf.float32))

    def begin_step(self) -> None:
        """Opens the path that is to be trained in the next step."""
        turn = int(self.read("turn"))
        if turn % self._steps == 0:
            self.gained.assign(0.0)
            self.open(self._contestants(turn // (2 * self._steps))[turn // self._steps % 2])

    def end_step(self) -> None:
        """Judges the path that was trained, and behind the last step of a tournament the two of it.

        The winner takes the place of the other. Each gene of the copy moves with a probability of one in all genes of
        the path, by -2 to 2, around the end.
        """
        turn = int(self.read("turn"))
        tournament, done = turn // (2 * self._steps), turn % self._steps + 1
        pair, fitness, genes = self._contestants(tournament), self.read("fitness"), self.read("genes")
        fitness[pair[turn // self._steps % 2]] = self.read("gained") / done
        if (turn + 1) % (2 * self._steps) == 0:
            winner, loser = pair if fitness[pair[0]] >= fitness[pair[1]] else pair[::-1]
            random, shape = self._random(2 * tournament + 2), genes[0].shape
            moved = random.uniform(size=shape) < 1 / genes[0].size
            genes[loser] = (genes[winner] + moved * random.integers(-2, 3, size=shape)) % self._modules
            fitness[loser] = -np.inf  # It is another path, which was not judged yet.
            self.genes.assign(genes)
        self.fitness.assign(fitness)
        self.turn.assign(turn + 1)

    def _contestants(self, tournament: int) -> list[int]:
        """Returns the two paths of a tournament."""
        return self._random(2 * tournament + 1).permutation(self._paths)[:2].tolist()


class SearchingModel(ExtendedModel):
    """A functional model with a `Population`, which learns of the loss of each training step."""

    def labels_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> tf.Tensor:
        loss = super().labels_loss(x, y, y_pred, sample_weight, training)
        if training:
            self.get_layer(POPULATION_NAME).gain(loss)
        return loss


class Tournaments(keras.callbacks.Callback):
    """Lets the paths of a population compete while there are tournaments.

    Args:
        population: The layer that holds them.
    """

    def __init__(self, population: Population):
        super().__init__()
        self._population = population

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._population.read("searches"):
            self._population.begin_step()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._population.read("searches"):
            self._population.end_step()

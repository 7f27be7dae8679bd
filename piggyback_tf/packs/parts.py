"""What a task has of a weight beside a mask, and the one rule by which a base's weight and a task make a weight.

A kernel is `W' = s (k0 W + k1 + (k2 + k3 W) M) + A B`, where M is a mask, the k are numbers of the whole kernel, s
scales channels, and A B has a low rank. What a task does not have is left out: without the k there is M W, and without
a mask W. Any other vector of the base, such as a bias, is replaced as a whole. The arrays are named ROLE/PATH:

| role | array |
| --- | --- |
| `affine` | k0, k1, k2, k3 of the kernel at the path, which has a mask: `[4]` |
| `scale` | s of the kernel at the path: of its rank, each side that of the kernel or 1 |
| `down` | A: of the kernel's shape, but for the last side, which is the rank r |
| `up` | B: `[r, last side of the kernel]`; with A seen as a matrix `[-1, r]`, A B has the kernel's numbers |
| `vector` | the values, `[n]`, of the variable at the path |

Nothing here needs TensorFlow.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from piggyback_tf.foreign_text import shown
from piggyback_tf.packs.container import PackError, check_path

SCALE, DOWN, UP, VECTOR, AFFINE = "scale", "down", "up", "vector", "affine"
ROLES = (SCALE, DOWN, UP, VECTOR, AFFINE)
# With one of these a kernel is more than the base's numbers, each of which is dropped, negated or scaled.
MIXED = frozenset((AFFINE, DOWN))
Shape = tuple[int, ...]


def part_name(role: str, path: str) -> str:
    """Returns the name of an array."""
    return f"{role}/{path}"


def split_name(name: str) -> tuple[str, str]:
    """Returns the role and the path of an array.

    Raises:
        PackError: If there is no such role, or no such path can be.
    """
    role, _, path = name.partition("/")
    if role not in ROLES:
        raise PackError(f"{shown(name)} begins with none of {', '.join(ROLES)}.")
    check_path(path)
    return role, path


def changed_weights(names: Iterable[str]) -> dict[str, set[str]]:
    """Returns the roles of the arrays of each weight, by path, in the order of the arrays."""
    found: dict[str, set[str]] = {}
    for name in names:
        role, path = split_name(name)
        found.setdefault(path, set()).add(role)
    return found


def count_parts(parts: Mapping[str, np.ndarray]) -> dict[str, tuple[int, int]]:
    """Returns what arrays change, for a person: how many weights, and how many numbers they have for that, by kind."""
    kinds = {AFFINE: "affine masks", SCALE: "scales of channels", DOWN: "low rank", UP: "low rank", VECTOR: "vectors"}
    weights: dict[str, set[str]] = {}
    numbers: dict[str, int] = {}
    for name, value in parts.items():
        role, path = split_name(name)
        weights.setdefault(kinds[role], set()).add(path)
        numbers[kinds[role]] = numbers.get(kinds[role], 0) + value.size
    return {kind: (len(weights[kind]), numbers[kind]) for kind in weights}


def parts_in_words(parts: Mapping[str, np.ndarray]) -> str:
    """Returns the kinds of arrays, to stand in a sentence: `"low rank and vectors"`."""
    return " and ".join(count_parts(parts))


def check_parts(shapes: Mapping[str, Shape]) -> None:
    """Checks that arrays of a task fit each other.

    Args:
        shapes: The shape of each by name.

    Raises:
        PackError: With the first thing that does not fit.
    """
    for path, roles in changed_weights(shapes).items():
        if VECTOR in roles and len(roles) > 1:
            raise PackError(f"{path!r} is replaced as a whole, and changed as a kernel, too.")
        if VECTOR in roles and len(shapes[part_name(VECTOR, path)]) != 1:
            raise PackError(f"What replaces {path!r} must be a vector.")
        if AFFINE in roles and shapes[part_name(AFFINE, path)] != (4,):
            raise PackError(
                f"What makes the mask of {path!r} affine must be four numbers. Received: "
                f"{list(shapes[part_name(AFFINE, path)])}."
            )
        if (DOWN in roles) != (UP in roles):
            raise PackError(f"{path!r} has one factor of what is added to it; both, 'down' and 'up', make it.")
        if DOWN in roles:
            down, up = shapes[part_name(DOWN, path)], shapes[part_name(UP, path)]
            if len(down) < 2 or len(up) != 2 or down[-1] != up[0] or up[0] > min(math.prod(down[:-1]), up[1]):
                raise PackError(
                    f"The factors of what is added to {path!r} must be [..., r] and [r, n] with r of at most the "
                    f"smaller side of their product. Received: {list(down)} and {list(up)}."
                )


def shape_error(name: str, shape: Shape, of: Shape) -> str | None:
    """Returns what is wrong with the shape of an array for a weight, if anything is.

    Args:
        name: The array's name.
        shape: Its shape.
        of: The shape of the weight.
    """
    role, path = split_name(name)
    fits = {
        AFFINE: len(of) > 1,
        SCALE: len(shape) == len(of) and all(side in (1, whole) for side, whole in zip(shape, of, strict=False)),
        DOWN: len(of) > 1 and shape[:-1] == of[:-1],
        UP: len(of) > 1 and shape[1:] == of[-1:],
        VECTOR: len(of) == 1 and shape == of,
    }[role]
    return None if fits else f"{role!r} of shape {list(shape)} for {path!r}, which has shape {list(of)}"


def affine_numbers(k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns by what an affine mask multiplies a weight, and what it adds, float32 `[3]` each: for M = 0, 1 and -1.

    So a value of M is its own place, counted from the end if it is negative. With `k0 W + k1 + (k2 + k3 W) M` they are
    k0 + k3 M and k1 + k2 M, each rounded once.

    Args:
        k: k0, k1, k2 and k3, float32 `[4]`.
    """
    signs = np.array([0, 1, -1], np.float32)
    return k[0] + k[3] * signs, k[1] + k[2] * signs


def composed_kernel(
    kernel: np.ndarray, parts: Mapping[str, np.ndarray], path: str, mask: np.ndarray | None = None
) -> np.ndarray:
    """Returns the kernel of a task, float32, or float64 as the base's.

    The order of operations is fixed and none is fused, so that every machine gets the same bits. An affine mask
    multiplies a weight and adds to the product, by two numbers for each value of M. Scales come next. The products of a
    row of A and a column of B are added one rank after another, beginning with the first, and their sum to all else.

    Args:
        kernel: The kernel of the base, floating point: masked if the task has a mask for it that is not affine.
        parts: All arrays of the task by name.
        path: The kernel's path.
        mask: The mask, int8 of the kernel's shape, values {-1, 0, 1}; needed if it is affine.
    """
    result = kernel.astype(np.result_type(kernel.dtype, np.float32))
    affine = parts.get(part_name(AFFINE, path))
    scale, down = parts.get(part_name(SCALE, path)), parts.get(part_name(DOWN, path))
    if affine is not None:
        assert mask is not None, "what is checked has masks where they are affine"
        factors, added = affine_numbers(affine)
        result *= factors[mask]
        result += added[mask]
    if scale is not None:
        result *= scale
    if down is not None:
        result += product(down, parts[part_name(UP, path)])
    return result


def product(down: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Returns A B, one rank after another: float32 in the shape of a kernel, or of rows `[..., n]`.

    Args:
        down: A, `[..., r]`.
        up: B, `[r, n]`.
    """
    added = down[..., :1] * up[0]
    for place in range(1, len(up)):
        added += down[..., place : place + 1] * up[place]
    return added

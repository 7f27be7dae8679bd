"""Packages that only some of the commands need, and the extras by which pip installs them."""

import importlib.util

EXTRAS = {"ai_edge_litert": "litert", "tensorflow_serving": "serving", "matplotlib": "plots", "ray": "ray"}
# What each extra is for, as the end of "is needed to".
_FOR = {
    "litert": "write, run and check models of LiteRT",
    "serving": "write what a TensorFlow Serving deployment needs",
    "plots": "draw plots",
    "ray": "learn a table of tasks on the machines of a Ray cluster",
}


def missing_extra(error: ModuleNotFoundError) -> str:
    """Returns the sentence for a package that is not installed.

    Raises:
        ModuleNotFoundError: The error itself, if the package is in no extra; then something is broken.
    """
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        raise error
    return extra_sentence(package)


def is_installed(package: str) -> bool:
    """Whether a package of an extra is there; it is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # Of a module that is None, as tests hide one.
        return False


def extra_sentence(package: str) -> str:
    """Returns what is to be done if a package of an extra is not there."""
    extra = EXTRAS[package]
    return f"The package {package} is needed to {_FOR[extra]}, and not installed: pip install 'piggyback_tf[{extra}]'"


def need(package: str) -> None:
    """Raises a `ModuleNotFoundError`, for which `missing_extra` has a sentence, if a package of an extra is not there.

    What needs it may be imported seconds later, behind TensorFlow.
    """
    if not is_installed(package):
        raise ModuleNotFoundError(extra_sentence(package), name=package)

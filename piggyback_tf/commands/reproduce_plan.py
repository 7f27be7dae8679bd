"""Which runs the tables of the Piggyback paper are made of. Each is a file of `configs/`, with others behind it.

What a run is, and what the paper has for it, is read from those files: flags, and sentences in their comments.
"""

import dataclasses
import functools
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from piggyback_tf.commands.answers import UsageError
from piggyback_tf.evaluation.decathlon import BASE_DOMAIN, DOMAINS

CONFIGS_FOLDER = Path("configs")
# Where the files of configs/ say that data and results are.
DATA_ROOT, OUTPUT = "data", "runs"
# How figures of the paper are marked in comments.
COLUMNS = ("piggyback", "classifier only", "individual networks", "trained batch norm")
# What comments on data say beside what they are and where they come from.
_NO_SOURCE = re.compile(
    r"Included by other(s| files)\.|Say where they are with [^ ]+ .*?\.(?= |$)|The masks of the paper .*?network\."
)
_SETS = ("cubs", "cars", "flowers", "wikiart", "sketch")
_NETWORKS = ("vgg16", "vgg16_bn", "resnet50", "densenet121")
_WITH_NORM = ("vgg16_bn", "resnet50", "densenet121")
_ORDERS = ("paper_vgg16", "paper_reverse_vgg16")
_CLASSIFIER, _INDIVIDUAL = "recipes/classifier_only", "recipes/individual"


@dataclasses.dataclass(frozen=True)
class PaperRun:
    """One run of `train`.

    Attributes:
        files: Files of `configs/` without their ending; what a later one says counts.
        folder: Where the results go, below the folder of all.
        needs: Folder of the run whose network it starts from; empty if it needs none.
        seeded: Whether it is run once for each seed; bases are trained once.
    """

    files: tuple[str, ...]
    folder: str
    needs: str = ""
    seeded: bool = True

    @property
    def flags(self) -> Mapping[str, str]:
        """The flags of its files, those that include others resolved."""
        return {name: value for file in self.files for name, value in read_flags(CONFIGS_FOLDER / f"{file}.flags")}

    @property
    def comments(self) -> str:
        """What its files and those that they include say, as one line."""
        return " ".join(text for file in self.files for text in _comments(CONFIGS_FOLDER / f"{file}.flags"))

    @property
    def method(self) -> str:
        """The method."""
        return self.flags["method"]

    @property
    def specs(self) -> dict[str, str]:
        """The data of each task, by its name."""
        flags = self.flags
        if "tasks" in flags:
            return dict(task.split("=", 1) for task in flags["tasks"].split(","))
        return {flags["task"]: flags["data"]}


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """A table or figure of the paper.

    Attributes:
        about: What it shows.
        layout: The layout of `table` that it is printed in.
        runs: What it is made of, those that others need first.
    """

    about: str
    layout: str
    runs: tuple[PaperRun, ...]


def _single(sets: Iterable[str], network: str, *behind: str) -> Iterator[PaperRun]:
    """Yields the run of each set on a network, with files behind its own."""
    for name in sets:
        # The one file that was there before there were other networks.
        file = name if (name, network) == ("flowers", "vgg16") else f"{name}_{network}"
        yield _run(file, *behind)


def _run(file: str, *behind: str, folder: str = "", needs: str = "") -> PaperRun:
    """Returns the run of a file with others behind it, which its folder names."""
    suffix = "".join(f"_{name.rpartition('/')[2]}" for name in behind if not name.startswith("backbones/"))
    return PaperRun((file, *behind), (folder or file) + suffix, needs)


def _columns(sets: Sequence[str], network: str) -> Iterator[PaperRun]:
    """Yields masks, a head alone, and networks of their own."""
    for behind in ((), (_CLASSIFIER,), (_INDIVIDUAL,)):
        yield from _single(sets, network, *behind)


def _packnet(network: str) -> Iterator[PaperRun]:
    """Yields PackNet in both orders; the sequences are on VGG-16 by themselves."""
    for order in _ORDERS:
        on_other = (f"backbones/{network}",) if network != "vgg16" else ()
        folder = f"sequences/{order.replace('vgg16', network)}"
        yield _run(f"sequences/{order}", *on_other, "recipes/packnet", folder=folder)


def _decathlon() -> Iterator[PaperRun]:
    base = PaperRun(("bases/decathlon",), "bases/decathlon", seeded=False)
    yield base
    for domain in DOMAINS:
        yield _run(f"decathlon/{domain}", needs=base.folder)
    for behind in (_CLASSIFIER, _INDIVIDUAL):
        yield from (_run(f"decathlon/{name}", behind, needs=base.folder) for name in DOMAINS if name != BASE_DOMAIN)


def _starts() -> Iterator[PaperRun]:
    places = PaperRun(("bases/places365_resnet50",), "bases/places365_resnet50", seeded=False)
    yield from _single(_SETS, "resnet50")
    yield places
    for start, needs in (("places365", places.folder), ("random", "")):
        for name in _SETS:
            file, folder = f"{name}_resnet50", f"{name}_resnet50_{start}"
            yield _run(file, f"backbones/resnet50_{start}", folder=folder, needs=needs)


def _large_scale() -> Iterator[PaperRun]:
    yield from _columns(("places365",), "vgg16")
    for behind in ("recipes/joint", "recipes/packnet"):
        yield _run("sequences/large_scale_vgg16", behind)


TABLES: Mapping[str, PaperTable] = {
    "table2": PaperTable(
        "five sets on VGG-16: masks, only a head, PackNet in two orders, a separate network for each set",
        "paper2",
        (*_columns(_SETS, "vgg16"), *_packnet("vgg16")),
    ),
    "table3": PaperTable("Places365 and ImageNet on VGG-16, with joint training", "paper3", tuple(_large_scale())),
    "table4": PaperTable(
        "table 2 on VGG-16 with batch norm, ResNet-50 and DenseNet-121",
        "paper4",
        tuple(run for name in _WITH_NORM for run in (*_columns(_SETS, name), *_packnet(name))),
    ),
    "table5": PaperTable(
        "masks on a ResNet-50 that was trained on ImageNet, on Places365, or not at all", "paper5", tuple(_starts())
    ),
    "table6": PaperTable(
        "zeros in masks, by network", "paper6", tuple(run for name in _NETWORKS for run in _single(_SETS, name))
    ),
    "table7": PaperTable(
        "masks with the base's batch norm and with the task's",
        "paper7",
        tuple(
            run
            for name in _WITH_NORM
            for behind in ((), ("recipes/trained_norm",))
            for run in _single(_SETS, name, *behind)
        ),
    ),
    "table8": PaperTable("the Visual Decathlon", "paper8", tuple(_decathlon())),
    "figure3": PaperTable("zeros in masks by layer of VGG-16", "paper6", tuple(_single(_SETS, "vgg16"))),
}


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run with a seed, on this machine.

    Attributes:
        run: What is run.
        seed: The seed.
        data_root: The folder that stands for `data` in the files.
        output: The folder that stands for `runs` in the files.
        data_dir: Where TensorFlow Datasets are; None for their default.
    """

    run: PaperRun
    seed: int
    data_root: str
    output: str
    data_dir: str | None

    @functools.cached_property
    def flags(self) -> Mapping[str, str]:
        """The flags of its files."""
        return self.run.flags

    @property
    def name(self) -> str:
        """Its folder below that of all."""
        return self.run.folder + (f"_seed{self.seed}" if self.seed else "")

    @property
    def folder(self) -> Path:
        """The folder of its results."""
        return Path(self.output) / self.name

    @property
    def specs(self) -> dict[str, str]:
        """The data of each task where they are here."""
        return {task: self._here(spec) for task, spec in self.run.specs.items()}

    @property
    def arguments(self) -> list[str]:
        """What stands behind `train`."""
        flags, changed = self.flags, {}
        if self.specs != self.run.specs:
            tasks = ",".join(f"{task}={spec}" for task, spec in self.specs.items())
            changed = {"tasks": tasks} if "tasks" in flags else {"data": tasks.partition("=")[2]}
        if self.run.needs and self.output != OUTPUT:
            changed["weights"] = self.weights
        if self.data_dir is not None:
            changed["data_dir"] = self.data_dir
        changed |= {"seed": str(self.seed), "output_dir": str(self.folder)}
        files = [f"--flagfile={CONFIGS_FOLDER / file}.flags" for file in self.run.files]
        return [*files, *(f"--{name}={value}" for name, value in changed.items())]

    @property
    def weights(self) -> str:
        """The weights of its base; of one that another run leaves, the file."""
        text = self.flags.get("weights", "")
        return str(Path(self.output) / Path(text).relative_to(OUTPUT)) if self.run.needs else text

    @property
    def command(self) -> str:
        """The command line, for a person."""
        return shlex.join(["python", "train.py", *self.arguments])

    def _here(self, spec: str) -> str:
        kind, _, path = spec.partition(":")
        if kind == "tfds" or not path.startswith(f"{DATA_ROOT}/"):
            return spec
        return f"{kind}:{Path(self.data_root) / path.removeprefix(f'{DATA_ROOT}/')}"


def read_flags(path: Path) -> Iterator[tuple[str, str]]:
    """Yields names and values of a file of flags and of those that it includes, in the order in which they count.

    Raises:
        UsageError: If there is no such file.
    """
    for line in _lines(path):
        name, _, value = line.removeprefix("--").partition("=")
        if name == "flagfile":
            yield from read_flags(Path(value))
        elif line.startswith("--"):
            yield name, value


def figures(run: PaperRun) -> dict[str, str]:
    """Returns what the paper has for the data and network of a run: an error in percent by the name of a column.

    The columns are those of `COLUMNS` that its first file names, and `"zeros"`, the percentage of weights that masks
    drop, of which the paper has ranges.
    """
    text = " ".join(_own_comments(CONFIGS_FOLDER / f"{run.files[0]}.flags"))
    found = {column: error for error, column in re.findall(rf"([\d.]+) % \(({'|'.join(COLUMNS)})\)", text)}
    if zeros := re.search(r"masks of the paper drop ([\d.]+(?: to [\d.]+)?) %", run.comments):
        found["zeros"] = zeros[1]
    return found


def where_to_get(spec: str) -> str:
    """Returns what the file of `configs/` says that names some data: what they are, where they come from and go to.

    Args:
        spec: The data as `configs/` has them.
    """
    # Most stand in the first folder.
    for path in (path for folder in ("data", "decathlon", "") for path in (CONFIGS_FOLDER / folder).glob("*.flags")):
        if f"--data={spec}" in _lines(path):
            return " ".join(_NO_SOURCE.sub("", " ".join(_own_comments(path))).split())
    return ""


def _own_flags(path: Path) -> Iterator[tuple[str, str]]:
    for line in _lines(path):
        name, _, value = line.removeprefix("--").partition("=")
        yield name, value


def _own_comments(path: Path) -> Iterator[str]:
    for line in _lines(path):
        # A command stands further in; it is no sentence.
        if line.startswith("#") and not line.startswith("#  "):
            yield line.removeprefix("#").strip()


def _comments(path: Path) -> Iterator[str]:
    yield from _own_comments(path)
    for name, value in _own_flags(path):
        if name == "flagfile":
            yield from _comments(Path(value))


def _lines(path: Path) -> tuple[str, ...]:
    try:
        return _read(Path.cwd() / path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise UsageError(
            f"There is no file {str(path)!r}: the tables are made of the files in configs/. Run this in the folder of "
            "a checkout of the repository."
        ) from None


@functools.cache
def _read(path: Path, changed: int) -> tuple[str, ...]:
    """Returns the lines of a file that was changed last at some time; files are asked for again and again."""
    return tuple(path.read_text().splitlines())

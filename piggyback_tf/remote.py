"""Files that lie elsewhere: where a path is taken, a URL such as `gs://BUCKET/FILE` is taken too.

A URL is a text that begins with a protocol that fsspec knows, and `://`. Its driver, a package such as gcsfs for `gs://`,
has to be installed; that of `hf://OWNER/NAME/FILE`, a file of a model repository on the Hugging Face Hub, always is.
fsspec is imported for URLs only, TensorFlow never.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from piggyback_tf.files import atomic_file, protocol_of, scratch_folder, write_atomically
from piggyback_tf.foreign_text import reason
from piggyback_tf.registry import unknown_name_message

if TYPE_CHECKING:
    import fsspec


class RemoteError(OSError):
    """A remote file or repository that cannot be used; the message is a sentence that says why."""


class MissingFileError(RemoteError, FileNotFoundError):
    """A remote file that does not exist."""


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path is a URL with a protocol that fsspec knows.

    Paths may hold `://` as well: only what begins with a protocol is a URL, a `Path` never is, and `./gs://file` is a
    file in the folder `gs:`. A text that begins with an unknown protocol is a path if it exists, or its folder does.

    Raises:
        RemoteError: If the text begins with a protocol that does not exist, and is no path either.
    """
    found = protocol_of(text) if isinstance(text := os.fspath(path), str) else None
    if found is None:
        return False
    from fsspec import available_protocols, registry

    # Those that fsspec comes with, and those that the program registered.
    protocols = [*available_protocols(), *registry]
    if found in protocols:
        return True
    if Path(text).exists() or Path(text).parent.is_dir():
        return False
    raise RemoteError(f"{text!r}: {unknown_name_message('protocol', found, sorted(set(protocols)))}")


def read_bytes(path: str | os.PathLike, most: int | None = None) -> bytes:
    """Returns the content of a file, which may be given by a URL.

    Args:
        path: The path or URL.
        most: A remote file is not read if its server says that it has more bytes than this.

    Raises:
        OSError: If a local file cannot be read.
        RemoteError: If a remote file cannot be read or is too long, or the driver of its protocol is not installed.
        MissingFileError: If there is no such remote file.
    """
    if not is_url(path):
        return Path(path).read_bytes()
    url = os.fspath(path)
    filesystem, inner = _filesystem(url)
    with _sentences(url, "read"):
        # Drivers remember listings, in which a file that was written meanwhile is missing.
        filesystem.invalidate_cache()
        # Not every server knows.
        size = most and filesystem.size(inner)
        if not size or size <= most:
            return filesystem.cat_file(inner)
    raise RemoteError(f"{url!r} has {size:,} bytes; at most {most:,} are read.")


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file, which may be given by a URL.

    A local file, `file://` too, is written whole or not at all. Elsewhere the content goes to its final name at once,
    which object stores and the Hugging Face Hub carry out as a whole; on a server of files, such as `sftp://`, a broken
    connection can leave a part.

    Raises:
        OSError: If a local file cannot be written.
        RemoteError: If a remote file cannot be written, or the driver of its protocol is not installed.
    """
    if not is_url(path):
        write_atomically(path, data)
        return
    url = os.fspath(path)
    filesystem, inner = _filesystem(url)
    with _sentences(url, "written"):
        if _is_local(filesystem):
            write_atomically(inner, data)
        else:
            filesystem.pipe_file(inner, data)


@contextlib.contextmanager
def local_input(path: str | os.PathLike) -> Iterator[str]:
    """Yields the path of a local file of the same name and content; for a URL one that goes when the block ends.

    Raises:
        RemoteError: As `read_bytes` does.
    """
    if not is_url(path):
        yield os.fspath(path)
        return
    url = os.fspath(path)
    filesystem, inner = _filesystem(url)
    with scratch_folder() as folder:
        local = str(folder / Path(inner).name)
        with _sentences(url, "read"):
            filesystem.invalidate_cache()
            filesystem.get_file(inner, local)
        yield local


@contextlib.contextmanager
def local_output(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a local path to write to, whose file becomes `path`, which may be a URL, when the block ends well.

    Raises:
        OSError: If a local file cannot be written; `path` is then untouched.
        RemoteError: As `write_bytes` does.
    """
    if not is_url(path):
        with atomic_file(path) as temporary:
            yield temporary
        return
    with scratch_folder() as folder:
        local = folder / Path(os.fspath(path)).name
        yield local
        write_bytes(path, local.read_bytes())


def _filesystem(url: str) -> tuple["fsspec.AbstractFileSystem", str]:
    """Returns the driver of a URL, and what the driver calls the file."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        # fsspec's text names the package.
        raise RemoteError(f"{url!r} needs a driver that is not installed: {reason(error)}.") from error
    except Exception as error:
        raise RemoteError(f"{url!r} cannot be used: {reason(error)}.") from error


def _is_local(filesystem: "fsspec.AbstractFileSystem") -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(filesystem, LocalFileSystem)


@contextlib.contextmanager
def _sentences(url: str, done: str) -> Iterator[None]:
    """Turns the errors of drivers into `RemoteError`s; they raise what the libraries under them do."""
    try:
        yield
    except FileNotFoundError as error:
        # Most drivers only repeat the path; that of the Hub says whether it is the repository that is missing.
        said = "" if error.errno or url.endswith(str(error).lstrip("/")) else f": {reason(error)}"
        missing = "file" if done == "read" else "folder for"
        raise MissingFileError(f"There is no {missing} {url!r}{said}.") from error
    except NotImplementedError as error:
        raise RemoteError(f"{url!r} cannot be {done}: its driver has no way to do so.") from error
    except Exception as error:
        raise RemoteError(f"{url!r} could not be {done}: {reason(error)}.") from error

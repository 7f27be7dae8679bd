"""Repositories on the Hugging Face Hub that hold task packs. Nothing here imports TensorFlow."""

from pathlib import PureWindowsPath

from piggyback_tf.file_names import PACK_SUFFIX, pack_name
from piggyback_tf.hub import HubRepository
from piggyback_tf.packs.container import LARGEST_FILE, PackError
from piggyback_tf.packs.description import check_task_name
from piggyback_tf.remote import RemoteError


class PackRepository(HubRepository):
    """A repository of packs, as it was when it was opened; see `HubRepository`."""

    def pack_files(self) -> dict[str, str]:
        """Returns the names of the packs' files by task, which is the file's name without `.task.safetensors`.

        Raises:
            RemoteError: If one of the names could lead out of a folder; a repository's content is not to be trusted.
        """
        packs = {}
        for file in self.files:
            if file.endswith(PACK_SUFFIX):
                try:
                    pack_file(task := file.removesuffix(PACK_SUFFIX))
                except PackError as error:
                    raise RemoteError(f"The repository {self.name!r} lists a file {file!r}. {error}") from error
                packs[task] = file
        return packs

    def read(self, file: str) -> bytes:
        """Returns the content of a file of the repository.

        Raises:
            PackError: If it is longer than a pack may be; nothing is downloaded then.
            RemoteError: If there is no such file, or the Hub cannot be used.
        """
        if (size := self.size(file)) > LARGEST_FILE:
            raise PackError(f"The file {file!r} has {size:,} bytes, and a task pack has at most {LARGEST_FILE:,}.")
        return super().read(file)


def pack_file(task: str) -> str:
    """Returns the name of a task's file in a repository.

    Raises:
        PackError: If the name could lead out of a folder on some system.
    """
    name = pack_name(check_task_name(task))
    if PureWindowsPath(name).drive:
        raise PackError(
            "In a repository, a task's name must not begin with a letter and a colon, as drives do. Received: "
            f"{task!r}."
        )
    return name

"""Model repositories on the Hugging Face Hub: of task packs, and of weights. Nothing here imports TensorFlow.

The address of the Hub and the user's token are those of huggingface_hub: the environment variables `HF_ENDPOINT` and
`HF_TOKEN`, or what `hf auth login` stored.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

from piggyback_tf.files import scratch_folder
from piggyback_tf.foreign_text import one_line, reason
from piggyback_tf.remote import RemoteError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_TOKEN_HINT = "set HF_TOKEN to a token that has the right to do this, or log in with 'hf auth login'"


class HubRepository:
    """A repository as it was when it was opened: files are read from that commit, and a new one must follow it.

    Args:
        name: `"OWNER/NAME"`.
        revision: A branch, tag or commit; the branch `main` if None.

    Attributes:
        name: The name.
        private: Whether only some users may see the repository.
        files: The names of the files in its top folder, sorted.

    Raises:
        RemoteError: If the name is none, there is no such repository or revision, or the Hub cannot be used.
    """

    def __init__(self, name: str, revision: str | None = None):
        self.name, self._revision, self._api = check_repository_name(name), revision, _api()
        from huggingface_hub.hf_api import RepoFile

        with _sentences(name, revision):
            info = self._api.model_info(name, revision=revision)
            self.private, self._commit = bool(info.private), info.sha
            tree = self._api.list_repo_tree(name, revision=self._commit)
            self._sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
            self.files = sorted(self._sizes)

    @classmethod
    def create(cls, name: str, branch: str | None = None, private: bool = False) -> Self:
        """Opens a repository to write to, which is created if there is none; the branch too.

        Args:
            name: `"OWNER/NAME"`.
            branch: The branch; `main` if None. A new one starts at `main`.
            private: Whether a new repository shall be private.

        Raises:
            RemoteError: As the constructor does; if the user may not create the repository; or if `private` is asked
                for and the repository is public already.
        """
        check_repository_name(name)
        api = _api()
        with _sentences(name, branch):
            # Without `private` the owner's default holds, which is not always public.
            api.create_repo(name, private=private or None, exist_ok=True)
        repository = cls(name)
        if private and not repository.private:
            raise RemoteError(f"The repository {name!r} exists and is public; make it private in its settings first.")
        if branch is None:
            return repository
        with _sentences(name, branch):
            api.create_branch(name, branch=branch, exist_ok=True)
        return cls(name, branch)

    def size(self, file: str) -> int:
        """Returns how many bytes a file of the top folder has, as the Hub says; 0 if there is none."""
        return self._sizes.get(file, 0)

    def read(self, file: str) -> bytes:
        """Returns the content of a file of the repository.

        Raises:
            RemoteError: If there is no such file, or the Hub cannot be used.
        """
        # Into a folder of its own: from a cache, an old file would be taken when the network is down.
        with scratch_folder() as folder, _sentences(self.name, self._revision):
            local = self._api.hf_hub_download(self.name, file, revision=self._commit, cache_dir=folder)
            return Path(local).read_bytes()

    def commit(self, files: dict[str, bytes], message: str) -> str:
        """Adds files, or replaces those of the same name, in one commit.

        Args:
            files: Content by name.
            message: The commit's message.

        Returns:
            The address of the commit.

        Raises:
            RemoteError: If the repository has changed since it was opened, the user may not write to it, or the Hub
                cannot be used. Nothing is changed then.
        """
        from huggingface_hub import CommitOperationAdd

        with _sentences(self.name, self._revision):
            return self._api.create_commit(
                self.name,
                [CommitOperationAdd(name, content) for name, content in files.items()],
                commit_message=message,
                revision=self._revision,
                parent_commit=self._commit,
            ).commit_url


def cached_file(name: str, file: str, revision: str | None = None) -> tuple[Path, str]:
    """Returns a file of a repository in the cache of huggingface_hub, and the commit that it is of.

    It is downloaded if it is not there. A file of a commit that is there is not asked for again. If the Hub cannot be
    reached, what a branch stood for last counts.

    Args:
        name: `"OWNER/NAME"`.
        file: Its name in the top folder.
        revision: A branch, tag or commit; the branch `main` if None.

    Raises:
        RemoteError: If there is no such repository, revision or file, or the Hub cannot be used and the file is not in
            the cache.
    """
    check_repository_name(name)
    with _sentences(name, revision):
        path = Path(_api().hf_hub_download(name, file, revision=revision))
    # CACHE/models--OWNER--NAME/snapshots/COMMIT/FILE
    return path, path.parent.name


def check_repository_name(name: str) -> str:
    """Returns the name of a repository if it can be one.

    Raises:
        RemoteError: If not.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise RemoteError(f"{name!r} is no name of a repository, which is OWNER/NAME: {one_line(error)}") from error
    if name.count("/") != 1:
        raise RemoteError(f"{name!r} is no name of a repository, which is OWNER/NAME.")
    return name


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    from piggyback_tf.version import __version__

    return HfApi(library_name="piggyback_tf", library_version=__version__)


@contextlib.contextmanager
def _sentences(name: str, revision: str | None) -> Iterator[None]:
    """Turns what huggingface_hub raises into `RemoteError`s: errors of the Hub, of its HTTP client, and others."""
    try:
        yield
    except Exception as error:
        raise RemoteError(_sentence(error, name, revision)) from error


def _sentence(error: Exception, name: str, revision: str | None) -> str:
    from huggingface_hub import constants, errors

    hub, repository = f"The Hub at {constants.ENDPOINT}", f"the repository {name!r}"
    # The library wraps what goes wrong in one of several uploads.
    error = error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception) else error
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    said = reason(getattr(error, "server_message", None) or "")
    said = f" ({said})" if said else ""
    if isinstance(error, errors.GatedRepoError):
        return f"{hub} gives {repository} only to users whom its owner lets in; ask there for access."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{hub} has no repository {name!r} of a model, or it is private; in that case, {_TOKEN_HINT}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"There is no revision {revision or 'main'!r} in {repository}."
    if isinstance(error, errors.LocalEntryNotFoundError):
        said = f": {reason(error.__cause__)}" if error.__cause__ else ""
        return (
            f"{hub} could not be asked for {repository}{said}. The file is not in the cache, {constants.HF_HUB_CACHE}; "
            f"'hf download {name}' puts it there where there is a network, and HF_HOME says where the cache is."
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"A file that was asked for is not in {repository}{said}."
    if status in (401, 403):
        return f"{hub} does not allow this with {repository}{said}; {_TOKEN_HINT}."
    if status == 412:
        return f"Somebody else changed {repository} meanwhile; run the command again."
    if status is not None:
        return f"{hub} answered for {repository} with status {status}{said or ': ' + one_line(error)}."
    return f"{hub} could not be used: {reason(error)}."

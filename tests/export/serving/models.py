"""What a server serves: versions of SavedModels by name, each in a C++ session."""

from pathlib import Path

from tests.export.c_api import CallError, Session
from tests.export.serving.batching import Batcher
from tests.export.serving.tensors import FAILED_PRECONDITION, INVALID_ARGUMENT, NOT_FOUND, ServingError

DEFAULT = "serving_default"


class Models:
    """Loaded models; all versions in their folders.

    Args:
        folders: The folder of each model by name.
        labels: Numbers of versions by (name of the model, label).
        batched: The model whose requests are merged, if any.
        batching: `max_batch_size` and `timeout` of its `Batcher`.
    """

    def __init__(self, folders, labels=None, batched=None, batching=None):
        self._labels, self._batchers = labels or {}, {}
        self._sessions = {
            name: {
                int(path.name): Session(path)
                for path in Path(folder).iterdir()
                if path.name.isdigit() and (path / "saved_model.pb").is_file()
            }
            for name, folder in folders.items()
        }
        for version, session in self._sessions.get(batched, {}).items():
            for signature in session.signatures:
                self._batchers[batched, version, signature] = Batcher(
                    lambda inputs, session=session, signature=signature: session.run(signature, **inputs), **batching
                )

    def versions(self, name, version=None, label=None):
        """Returns the numbers of the versions that are meant."""
        if label is not None:
            if (name, label) not in self._labels:
                raise ServingError(INVALID_ARGUMENT, f"Unrecognized servable version label: {label}")
            version = self._labels[name, label]
        found = [each for each in self._sessions.get(name, {}) if version in (None, each)]
        if not found:
            what = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise ServingError(NOT_FOUND, f"Servable not found for request: {what}")
        return sorted(found)

    def signatures(self, name, version=None, label=None):
        """Returns the number of the version that a request means, and its signatures."""
        version = self.versions(name, version, label)[-1]
        return version, self._sessions[name][version].signatures

    def predict(self, name, version, signature, inputs):
        """Calls a signature of a version."""
        session = self._sessions[name][version]
        if signature not in session.signatures:
            raise ServingError(FAILED_PRECONDITION, f'Serving signature key "{signature}" not found.')
        takes = session.signatures[signature][0]
        if takes.keys() != inputs.keys():
            extra, missing = inputs.keys() - takes.keys(), takes.keys() - inputs.keys()
            raise ServingError(
                INVALID_ARGUMENT,
                f"input size does not match signature: {len(inputs)}!={len(takes)}. Sent extra: {sorted(extra)}. "
                f"Missing but required: {sorted(missing)}.",
            )
        batcher = self._batchers.get((name, version, signature))
        try:
            return batcher(inputs) if batcher else session.run(signature, **inputs)
        except CallError as error:
            raise ServingError(error.code, str(error)) from error

"""Asks a TensorFlow Serving server about images, over REST or gRPC.

    python client.py predict --url=http://localhost:8501 --task=birds a.jpg b.png FOLDER
    python client.py predict --grpc=localhost:8500 --list=images.txt --batch_size=32 --in_flight=4
    python client.py predict --grpc=localhost:8500 --pack=new.task.safetensors --export=DIR/1 a.jpg
    python client.py segment --url=http://localhost:8501 --task=roads --output_dir=labels street.jpg FOLDER
    python client.py detect --url=http://localhost:8501 --task=cells --min_score=0.3 a.jpg FOLDER
    python client.py tasks --url=http://localhost:8501
    python client.py status --grpc=localhost:8500 --label=stable
    python client.py status --url=https://models.example.org --ca=ca.pem --header=@secret.txt

One file for Python 3.9 or newer. It needs numpy; with --grpc also grpcio and protobuf; with --pack also this project's
package `piggyback_tf`. It never needs TensorFlow.

`predict` prints a line of JSON for each image, in order: path, task, labels and scores (the highest first), task_ok and
image_ok. If there is no answer, one of the last two is false. If the image file cannot be opened, the line has an
`error`. A line of the file --list is a path, or a path, a tab and a task. If the server does not answer, the client
says so on stderr at once, and tries again until --deadline.

`segment` is for tasks with a class for each pixel. It writes FILE.labels.png to --output_dir, with the size of the
image. Its pixels are the numbers of the classes, shown in colours. In the line, `labels` is the path of this file.

`detect` is for tasks with a box around each object. In the line, `boxes` are those with a score of --min_score or more,
the highest first, in COCO's format of results: `bbox` is x, y, width and height in pixels of the file, `category_id`
the number of the class, counted from 1, `class` its name, and `score` the score.

Exit status: 0 if everything was answered; 1 if some lines are flagged; 2 if the command, a file or the request is
wrong, or the output cannot be written; 3 if the server did not answer until --deadline; 130 at Ctrl-C; 141 if nobody
reads the output.
"""

from __future__ import annotations

import argparse
import base64
import collections
import concurrent.futures
import http.client
import json
import math
import os
import random
import re
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png")
# Files and folders that hold no data, in small letters: a copy of what `piggyback_tf/junk.py` has.
JUNK = (
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "__macosx",
    "@eadir",
    "#recycle",
    "#snapshot",
    "@recycle",
    "lost+found",
)
MIB = 2**20
# What a request may weigh before a server or proxy says more; a mask of 25 million weights is 2.9 MB.
MAX_MESSAGE = 1024 * MIB
# Of a server that merges requests, one that does not fit fails those of others too: for them it is not final.
_MERGED = "from different tasks"
# What to try again: HTTP's 429 and the statuses of servers and proxies that are not ready, gRPC's by name.
_BUSY_HTTP = (429, 502, 503, 504)
_BUSY_GRPC = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
# What is wrong with a certificate stays wrong; gRPC says it in the words of its library.
_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
_HEADER = re.compile(r"([A-Za-z0-9_.-]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)[ \t]*")
_FILES_OF_CLASSES = "encoded"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
# The messages of TensorFlow Serving's API that are used: field, number and type, `*` if repeated. They are here since
# the package that has them, tensorflow-serving-api, brings TensorFlow.
_MESSAGES = {
    "Dim": "size:1:int64",
    "Shape": "dim:2:*Dim",
    "Tensor": "dtype:1:int32 tensor_shape:2:Shape tensor_content:4:bytes float_val:5:*float int_val:7:*int32 "
    "string_val:8:*bytes int64_val:10:*int64 bool_val:11:*bool",
    "Version": "value:1:int64",
    "ModelSpec": "name:1:string version:2:Version signature_name:3:string version_label:4:string",
    "Named": "key:1:string value:2:Tensor",
    "Predict": "model_spec:1:ModelSpec inputs:2:*Named",
    "Predicted": "outputs:1:*Named",
    "Error": "error_code:1:int32 error_message:2:string",
    "VersionStatus": "version:1:int64 state:2:int32 status:3:Error",
    "Status": "model_spec:1:ModelSpec",
    "Statuses": "model_version_status:1:*VersionStatus",
}
# Numbers of TensorFlow's types, and where their values are if not in `tensor_content`.
_STRING = 7
_DTYPES = {
    1: (np.float32, "float_val"),
    3: (np.int32, "int_val"),
    4: (np.uint8, "int_val"),
    7: (object, "string_val"),
    9: (np.int64, "int64_val"),
    10: (np.bool_, "bool_val"),
}


class ClientError(Exception):
    """A request that cannot be answered; the message says why."""


class NoAnswerError(ClientError):
    """The server gave no answer in time."""


class _BusyError(Exception):
    """What went wrong may go well at another time."""


class _MergedError(_BusyError):
    """Another's request failed this one with it."""


def _for_now(message: str) -> _BusyError:
    """Returns the error of a request that may go well later, by what the server says."""
    return (_MergedError if _MERGED in message else _BusyError)(message)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes a redirection for a refusal: headers, which may be secret, are for the server that was named."""

    def redirect_request(self, *_: Any) -> None:
        return None


class RestTransport:
    """Requests over HTTP.

    Args:
        url: `http://HOST:PORT`, or https, with a path in front of `/v1/models` if a proxy has one.
        ca: A file of certificates of authorities in the place of the system's.
        headers: Headers of each request.

    Raises:
        ClientError: If the URL is none, or the file holds no certificate.
    """

    def __init__(self, url: str, ca: str | None = None, headers: Mapping[str, str] | None = None):
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # A port that is no number, or half a pair of brackets.
            good = False
        if not good or not url.isprintable() or any(sign in url for sign in " @?#"):
            raise ClientError(f"{url!r} is no address of a server; it should look like http://localhost:8501.")
        if ca is not None and parts.scheme != "https":
            raise ClientError(f"--ca={ca} is for a server with TLS, whose address begins with https; {url!r} does not.")
        self.name, self._headers = url.rstrip("/"), {"Content-Type": "application/json", **(headers or {})}
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if parts.scheme == "https":
            handlers.append(urllib.request.HTTPSHandler(context=_tls_context(ca)))
        self._opener = urllib.request.build_opener(*handlers)

    def predict(
        self, model: str, version: int | str | None, signature: str, inputs: Mapping[str, Any], timeout: float
    ) -> dict[str, np.ndarray]:
        """Calls a signature; `version` is a number, a label, or None for the newest."""
        try:
            content = {"signature_name": signature, "inputs": {name: _to_json(v) for name, v in inputs.items()}}
            body = json.dumps(content, allow_nan=False).encode()
        except ValueError as error:
            raise ClientError(
                "JSON has no NaN and no infinity, and an input has one; over gRPC such images are flagged."
            ) from error
        outputs = self._send(f"{_path(model, version)}:predict", body, timeout).get("outputs")
        if not isinstance(outputs, dict):
            raise ClientError(f"{self.name} gave no outputs by name for {signature!r}; this client asks for several.")
        return {name: _from_json(name, value) for name, value in outputs.items()}

    def status(self, model: str, version: int | str | None, timeout: float) -> list[dict[str, Any]]:
        """Returns version, state and error of each version."""
        found = self._send(_path(model, version), None, timeout).get("model_version_status", [])
        return [
            {"version": int(e["version"]), "state": e["state"], "error": e.get("status", {}).get("error_message", "")}
            for e in found
        ]

    def _send(self, path: str, body: bytes | None, timeout: float) -> dict[str, Any]:
        request = urllib.request.Request(self.name + path, body, self._headers)
        try:
            with self._opener.open(request, timeout=timeout) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise self._refused(error, body) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise ClientError(_untrusted(self.name, error.reason.verify_message)) from error
            raise _BusyError(str(error.reason) or type(error.reason).__name__) from error
        # Refused and reset connections, names that are not known, timeouts, answers that break off.
        except (OSError, http.client.HTTPException) as error:
            raise _BusyError(str(error) or type(error).__name__) from error
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ClientError(f"{self.name} answered what is not JSON: is TensorFlow Serving's REST there?") from error
        if not isinstance(content, dict):
            raise ClientError(f"{self.name} answered what is not an object of JSON.")
        return content

    def _refused(self, error: urllib.error.HTTPError, body: bytes | None) -> Exception:
        text = error.read(MIB).decode(errors="replace")
        try:
            text = json.loads(text)["error"]
        except (ValueError, LookupError, TypeError):
            text = text.strip() or str(error.reason)
        if error.code == 413:
            return ClientError(_too_large(self.name, len(body or b"")))
        if error.code in _BUSY_HTTP or _MERGED in str(text):
            return _for_now(f"HTTP {error.code}: {text}")
        return ClientError(f"{self.name} refused the request (HTTP {error.code}): {text}")


class GrpcTransport:
    """Requests over gRPC.

    Args:
        address: `HOST:PORT`.
        ca: A file of certificates of authorities in the place of those that gRPC brings; TLS is then used.
        headers: Metadata of each request; names are in small letters there.
        tls: Whether TLS is used.

    Raises:
        ClientError: If the address is none, the file holds no certificate, or grpcio or protobuf is missing.
    """

    def __init__(
        self, address: str, ca: str | None = None, headers: Mapping[str, str] | None = None, tls: bool = False
    ):
        host, _, port = address.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16 or "/" in host:
            raise ClientError(f"{address!r} is no address of a server; it should look like localhost:8500.")
        try:
            import grpc
        except ImportError as error:
            raise ClientError("--grpc needs grpcio: pip install grpcio protobuf; or use --url.") from error
        self.name, self._grpc, self._messages = address, grpc, _message_classes()
        options = {
            "grpc.max_send_message_length": MAX_MESSAGE,
            "grpc.max_receive_message_length": MAX_MESSAGE,
            # Otherwise a server that comes up is looked for every second at first, then every two minutes.
            "grpc.initial_reconnect_backoff_ms": 100,
            "grpc.min_reconnect_backoff_ms": 1000,
            "grpc.max_reconnect_backoff_ms": 2000,
        }
        self._metadata = [(name.lower(), value) for name, value in (headers or {}).items()]
        if tls or ca is not None:
            # Only to say what is wrong with the file: gRPC would try to connect until the deadline.
            _tls_context(ca)
            credentials = grpc.ssl_channel_credentials(None if ca is None else Path(ca).read_bytes())
            channel = grpc.secure_channel(address, credentials, list(options.items()))
        else:
            channel = grpc.insecure_channel(address, list(options.items()))
        kinds = {"Predict": ("PredictionService/Predict", "Predicted")}
        kinds["Status"] = ("ModelService/GetModelStatus", "Statuses")
        self._calls = {
            name: channel.unary_unary(
                f"/tensorflow.serving.{method}",
                request_serializer=self._messages[name].SerializeToString,
                response_deserializer=self._messages[answer].FromString,
            )
            for name, (method, answer) in kinds.items()
        }

    def predict(
        self, model: str, version: int | str | None, signature: str, inputs: Mapping[str, Any], timeout: float
    ) -> dict[str, np.ndarray]:
        """Calls a signature; `version` is a number, a label, or None for the newest."""
        request = self._messages["Predict"](model_spec=self._spec(model, version, signature))
        for name, value in inputs.items():
            _fill_tensor(request.inputs.add(key=name).value, value)
        return {entry.key: _read_tensor(entry.value) for entry in self._send("Predict", request, timeout).outputs}

    def status(self, model: str, version: int | str | None, timeout: float) -> list[dict[str, Any]]:
        """Returns version, state and error of each version."""
        request = self._messages["Status"](model_spec=self._spec(model, version, ""))
        return [
            {
                "version": entry.version,
                "state": _STATES.get(entry.state, str(entry.state)),
                "error": entry.status.error_message,
            }
            for entry in self._send("Status", request, timeout).model_version_status
        ]

    def _spec(self, model: str, version: int | str | None, signature: str) -> Any:
        spec = self._messages["ModelSpec"](name=model, signature_name=signature)
        if isinstance(version, str):
            spec.version_label = version
        elif version is not None:
            spec.version.value = version
        return spec

    def _send(self, kind: str, request: Any, timeout: float) -> Any:
        try:
            return self._calls[kind](request, timeout=timeout, metadata=self._metadata)
        except self._grpc.RpcError as error:
            code, text = error.code().name, error.details() or ""
            if "message larger than max" in text:
                raise ClientError(_too_large(self.name, request.ByteSize())) from error
            if _UNTRUSTED in text:
                raise ClientError(_untrusted(self.name, text)) from error
            if code in _BUSY_GRPC or _MERGED in text:
                raise _for_now(f"{code}: {text}") from error
            raise ClientError(f"{self.name} refused the request ({code}): {text}") from error


class Client:
    """Asks a server that has an export. Threads may share it.

    Args:
        url: Address of the server's REST API, such as `http://localhost:8501`.
        grpc: Address of its gRPC API, such as `localhost:8500`; one of both is given.
        model: Name of the export on the server.
        second_model: Name of the second servable there; `<model>_with_mask` if None.
        version: Number of the version, or its label; the newest if None.
        timeout: Seconds for one try of a request.
        deadline: Seconds for all tries of it together.
        ca: A file of certificates of authorities that are trusted in the place of the usual ones; gRPC then uses TLS.
        headers: Headers of each request, gRPC's metadata, by name.
        tls: Whether gRPC uses TLS; REST does if the address begins with https.
        on_wait: Called with a sentence when the server does not answer a first try, and the client goes on trying.

    Raises:
        ClientError: If the address or one of the numbers is not valid, or a package is missing.
    """

    def __init__(
        self,
        url: str | None = None,
        grpc: str | None = None,
        model: str = "piggyback",
        second_model: str | None = None,
        version: int | str | None = None,
        timeout: float = 20.0,
        deadline: float = 60.0,
        ca: str | None = None,
        headers: Mapping[str, str] | None = None,
        tls: bool = False,
        on_wait: Callable[[str], None] | None = None,
    ):
        if (url is None) == (grpc is None):
            raise ClientError("Give the address of the server: either --url=http://HOST:8501 or --grpc=HOST:8500.")
        for name, value in {"timeout": timeout, "deadline": deadline}.items():
            if not 0 < value < math.inf:
                raise ClientError(f"{name} is {value}; it should be a number of seconds above 0.")
        if version == "":
            raise ClientError("The label of the version is empty; leave it out for the newest version.")
        if tls and url is not None:
            raise ClientError("--tls is for --grpc; a --url with TLS begins with https.")
        for name, content in (headers or {}).items():
            if not _HEADER.fullmatch(f"{name}:{content}"):
                raise ClientError(f"The header {name!r} is none: it should look like NAME: VALUE, in ASCII.")
        self._transport = (
            RestTransport(url, ca, headers) if url is not None else GrpcTransport(str(grpc), ca, headers, tls)
        )
        self._on_wait, self._waiting = on_wait, threading.Lock()
        self._model, self._second = model, f"{model}_with_mask" if second_model is None else second_model
        self._version, self._timeout, self._deadline = version, timeout, deadline

    def call(self, signature: str, inputs: Mapping[str, Any], *, second: bool = False) -> dict[str, np.ndarray]:
        """Calls a signature with arrays, or lists of texts or bytes, and returns its outputs by name.

        Args:
            signature: Name of the signature.
            inputs: The inputs by name.
            second: Whether it belongs to the second servable.

        Raises:
            ClientError: If the server refuses the request.
            NoAnswerError: If it did not answer in time.
        """
        model = self._second if second else self._model
        return self._retry(lambda left: self._transport.predict(model, self._version, signature, inputs, left))

    def classify(self, images: np.ndarray, tasks: Sequence[str] | np.ndarray) -> dict[str, np.ndarray]:
        """Classifies prepared images.

        Args:
            images: In [0, 255], `[B, S, S, 3]`, of the export's type and size.
            tasks: For each image the name of its task, or its number (int32).

        Returns:
            `probabilities` `[B, C]`, `class_id` and `task_ok` `[B]`; -1 and zeros for what cannot be answered.
        """
        numbers = isinstance(tasks, np.ndarray) and tasks.dtype.kind in "iu"
        inputs = {"images": images, "task": np.asarray(tasks, np.int32) if numbers else list(tasks)}
        return self.call("serving_default" if numbers else "by_name", inputs)

    def classify_files(self, files: Sequence[bytes], tasks: Sequence[str]) -> list[dict[str, Any]]:
        """Classifies the contents of JPEG and PNG files.

        Returns:
            For each `labels` and `scores`, the best first, `task_ok` and `image_ok`.
        """
        found = self.call(_FILES_OF_CLASSES, {"image_bytes": list(files), "task": list(tasks)})
        rows = []
        for index in range(len(files)):
            labels, scores = map(_text, found["labels"][index]), map(float, found["scores"][index])
            # A task may have fewer classes than are returned; a class may have no name, but then it has a score.
            best = [(label, score) for label, score in zip(labels, scores) if label or score]
            flags = {name: bool(found[name][index]) for name in ("task_ok", "image_ok")}
            rows.append({"labels": [b[0] for b in best], "scores": [b[1] for b in best], **flags})
        return rows

    def segment(self, images: np.ndarray, tasks: Sequence[str]) -> dict[str, np.ndarray]:
        """Finds the class of each pixel of prepared images.

        Args:
            images: In [0, 255], `[B, H, W, 3]`, of the export's type and of the size that the tasks take.
            tasks: For each image the name of its task.

        Returns:
            `labels` `[B, H, W]`, of 255 for what cannot be answered, `task_ok` and `image_ok` `[B]`.
        """
        height, width = np.shape(images)[1:3]
        return self.call(f"segment_{height}x{width}", {"images": images, "task": list(tasks)})

    def segment_files(self, files: Sequence[bytes], tasks: Sequence[str]) -> list[dict[str, Any]]:
        """Finds the class of each pixel of the contents of JPEG and PNG files.

        Returns:
            For each `png`, bytes: a grey PNG of the size of the image whose pixels are the numbers of the classes,
            empty for what cannot be answered; `task_ok` and `image_ok`.
        """
        found = self.call("segment", {"image_bytes": list(files), "task": list(tasks)})
        flags = {name: found[name].tolist() for name in ("task_ok", "image_ok")}
        rows = enumerate(found["png_bytes"])
        return [{"png": png, **{name: values[index] for name, values in flags.items()}} for index, png in rows]

    def detect(self, images: np.ndarray, tasks: Sequence[str]) -> dict[str, np.ndarray]:
        """Finds a box around each object of prepared images.

        Args:
            images: In [0, 255], `[B, H, W, 3]`, of the export's type and of the size that the tasks take.
            tasks: For each image the name of its task.

        Returns:
            `boxes` `[B, K, 4]`: ymin, xmin, ymax and xmax in pixels of the prepared image, the surest first; `scores`
            and `classes` `[B, K]`; `count` `[B]`, how many of them there are; `task_ok` and `image_ok` `[B]`.
        """
        height, width = np.shape(images)[1:3]
        return self.call(f"detect_{height}x{width}", {"images": images, "task": list(tasks)})

    def detect_files(self, files: Sequence[bytes], tasks: Sequence[str]) -> list[dict[str, Any]]:
        """Finds a box around each object of the contents of JPEG and PNG files.

        Returns:
            For each `boxes`, a list of `[ymin, xmin, ymax, xmax]` in pixels of the image, the surest first; `scores`,
            `classes`, numbers, `task_ok` and `image_ok`.
        """
        found = self.call("detect", {"image_bytes": list(files), "task": list(tasks)})
        columns = {name: values.tolist() for name, values in found.items()}
        rows = []
        for index, count in enumerate(columns["count"]):
            row = {name: columns[name][index][:count] for name in ("boxes", "scores", "classes")}
            rows.append({**row, **{name: columns[name][index] for name in ("task_ok", "image_ok")}})
        return rows

    def classify_with_mask(
        self, images: np.ndarray, mask: np.ndarray, head: np.ndarray, norm: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Classifies prepared images for a task that the server does not have.

        Args:
            images: As in `classify`.
            mask: The task's bits in the order of the export, uint8.
            head: The kernel, and the bias below it, float32 `[F + 1, C]`.
            norm: Batch norm of the task in the order of the export, float32; that of the base if None.

        Returns:
            `probabilities` `[B, C]` and `class_id` `[B]`.
        """
        norm = np.zeros(0, np.float32) if norm is None else norm
        return self.call("with_mask", {"images": images, "mask": mask, "head": head, "norm": norm}, second=True)

    def tasks(self) -> dict[str, list[str]]:
        """Returns the tasks in the order of their numbers, and the classes of each."""
        return {task: classes for task, classes, _ in self.listed()}

    def listed(self) -> list[tuple[str, list[str], str]]:
        """Returns each task, its classes, and the signature that answers image files for it, such as `encoded`."""
        # A signature without inputs cannot be called over REST.
        found = self.call("find_tasks", {"task": []}, second=True)
        names, counts = list(map(_text, found["names"])), np.asarray(found["count"]).tolist()
        # An export with nothing but tasks of classes does not say it.
        signatures = map(_text, found["signature"]) if "signature" in found else [_FILES_OF_CLASSES] * len(names)
        rows = zip(names, found["classes"], counts, signatures)
        return [(name, [_text(label) for label in row[:count]], own) for name, row, count, own in rows]

    def status(self) -> list[dict[str, Any]]:
        """Returns `version`, `state` and `error` of each version that the server knows."""
        return self._retry(lambda left: self._transport.status(self._model, self._version, left))

    def _retry(self, send: Callable[[float], Any]) -> Any:
        """Sends until there is an answer, with partly random pauses, which double, except after merged requests."""
        end, pause, tries = time.monotonic() + self._deadline, 0.1, 0
        while True:
            tries += 1
            try:
                return send(max(0.001, min(self._timeout, end - time.monotonic())))
            except _BusyError as error:
                wait = pause * random.uniform(0.5, 1)
                if time.monotonic() + wait >= end:
                    raise NoAnswerError(
                        f"{self._transport.name} did not answer within {self._deadline:g} s, asked {tries} times; "
                        f"at last: {error}"
                    ) from error
                # Of several threads that wait the first one says so; the lock is never given back.
                if self._on_wait and not isinstance(error, _MergedError) and self._waiting.acquire(blocking=False):
                    self._on_wait(
                        f"{self._transport.name} does not answer yet ({error}); it is asked again for "
                        f"{self._deadline:g} s (--deadline)."
                    )
                time.sleep(wait)
                # A server that answers for another's fault is not overloaded; being merged again is a matter of luck.
                pause = pause if isinstance(error, _MergedError) else min(2 * pause, 5.0)


def _path(model: str, version: int | str | None) -> str:
    kind = (
        "" if version is None else f"/labels/{quote(version)}" if isinstance(version, str) else f"/versions/{version}"
    )
    return f"/v1/models/{quote(model, safe='')}{kind}"


def _tls_context(ca: str | None) -> ssl.SSLContext:
    """Returns what checks certificates, against those in a file if there is one."""
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # An SSLError is one, too.
        reason = error.strerror if error.errno and not isinstance(error, ssl.SSLError) else "it holds no certificate"
        raise ClientError(f"--ca={ca} cannot be used: {reason}.") from error


def _untrusted(name: str, reason: str) -> str:
    return f"{name} has a certificate that is not trusted ({reason}); name that of its authority with --ca=FILE."


def _read_headers(texts: Sequence[str]) -> dict[str, str]:
    """Returns headers by name, of texts `NAME: VALUE` and `@FILE` with such lines; no error shows a value."""
    headers = {}
    for text in texts:
        lines, where = [text], "--header"
        if text.startswith("@"):
            where += f"={text}"
            try:
                lines = [line for line in Path(text[1:]).read_text(encoding="utf-8").splitlines() if line.strip()]
            except (OSError, ValueError) as error:
                raise ClientError(f"{where} cannot be read: {getattr(error, 'strerror', error)}.") from error
        for line in lines:
            found = _HEADER.fullmatch(line)
            if not found:
                raise ClientError(f"{where}: a header should look like NAME: VALUE, in ASCII, and one does not.")
            headers[found[1]] = found[2]
    return headers


def _too_large(name: str, size: int) -> str:
    return (
        f"{name} takes no message of {size / MIB:.1f} MiB: send fewer images in a request (--batch_size), or raise the "
        "limit of the server or of the proxy before it."
    )


def _printable(text: str) -> str:
    """Returns a text on one line: what a server answers must not send commands to a terminal."""
    text = " ".join(text.splitlines())
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ClientError(f"{text!r} cannot be sent: it is not UTF-8.") from error


def _to_json(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.tolist()
    return [
        {"b64": base64.b64encode(item).decode()} if isinstance(item, bytes) else _utf8(item).decode() for item in value
    ]


def _from_json(name: str, value: Any) -> np.ndarray:
    """Returns an output; bytes are in base64 if the name says so."""
    if not name.endswith("_bytes"):
        return np.array(value)
    found = np.empty(len(value), object)
    found[:] = [base64.b64decode(item["b64"]) for item in value]
    return found


def _fill_tensor(tensor: Any, value: Any) -> None:
    """Writes an array, or a list of texts or bytes, into a message."""
    if not isinstance(value, np.ndarray) or value.dtype == object:
        tensor.dtype = _STRING
        tensor.string_val.extend(_utf8(item) if isinstance(item, str) else item for item in value)
        shape: tuple[int, ...] = (len(value),)
    else:
        numbers = [number for number, (dtype, _) in _DTYPES.items() if value.dtype == dtype]
        if not numbers:
            known = ", ".join(np.dtype(dtype).name for dtype, _ in _DTYPES.values() if dtype is not object)
            raise ClientError(f"Arrays of {value.dtype} cannot be sent, only {known}.")
        tensor.dtype, tensor.tensor_content, shape = numbers[0], value.tobytes(), value.shape
    tensor.tensor_shape.SetInParent()
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)


def _read_tensor(tensor: Any) -> np.ndarray:
    """Returns the array in a message."""
    if tensor.dtype not in _DTYPES:
        raise ClientError(f"The server answered with an array of TensorFlow's type {tensor.dtype}, which is not known.")
    dtype, field = _DTYPES[tensor.dtype]
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape)
    found, values = np.zeros(math.prod(shape), dtype), list(getattr(tensor, field))
    if values:
        # The last value stands for all that follow.
        found[:] = values[-1]
        found[: len(values)] = values
    return found.reshape(shape)


_MESSAGES_LOCK = threading.Lock()
_CLASSES: dict[str, Any] = {}


def _message_classes() -> dict[str, Any]:
    """Returns the classes of `_MESSAGES`, in a pool of their own beside those of TensorFlow."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError as error:
        raise ClientError("--grpc needs protobuf: pip install grpcio protobuf; or use --url.") from error
    with _MESSAGES_LOCK:
        if not _CLASSES:
            kind = descriptor_pb2.FieldDescriptorProto
            file = descriptor_pb2.FileDescriptorProto(name="client.proto", package="client", syntax="proto3")
            for name, fields in _MESSAGES.items():
                message = file.message_type.add(name=name)
                for field, number, what in (text.split(":") for text in fields.split()):
                    label = kind.LABEL_REPEATED if what.startswith("*") else kind.LABEL_OPTIONAL
                    entry = message.field.add(name=field, number=int(number), label=label)
                    what = what.lstrip("*")
                    if what in _MESSAGES:
                        entry.type, entry.type_name = kind.TYPE_MESSAGE, f".client.{what}"
                    else:
                        entry.type = getattr(kind, f"TYPE_{what.upper()}")
            pool = descriptor_pool.DescriptorPool()
            pool.Add(file)
            for name in _MESSAGES:
                _CLASSES[name] = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"client.{name}"))
    return _CLASSES


def _read_pack(path: str, export: str) -> Any:
    """Returns the `SentPack` of a pack; the one thing for which a client needs more than this file."""
    try:
        from piggyback_tf.export.deployment.sent_pack import SentPack, SentPackError
    except ImportError as error:
        raise ClientError(f"--pack needs the package piggyback_tf here: {error}.") from error
    try:
        return SentPack(path, export)
    except SentPackError as error:
        raise ClientError(str(error)) from error


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name holds no data: it is hidden, such as `._NAME` of macOS, or in `JUNK`."""
    return name.startswith(".") or name.lower() in JUNK


def _find_files(folder: str) -> Iterator[Path]:
    """Yields the files in a folder and in those below it that are no junk and in none."""
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_junk(name)]
        yield from (Path(path, name) for name in files if not is_junk(name))


def _find_images(paths: Sequence[str], listed: str | None, task: str | None) -> list[tuple[str, str]]:
    """Returns path and task of each image that the command line means."""
    found = []
    for path in paths:
        files = [path]
        if Path(path).is_dir():
            files = sorted(str(file) for file in _find_files(path) if file.suffix.lower() in SUFFIXES)
            if not files:
                raise ClientError(f"The folder {path!r} has no file {', '.join(SUFFIXES)}.")
        found += [(file, task) for file in files]
    if listed is not None:
        try:
            lines = Path(listed).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise ClientError(f"--list={listed} cannot be read: {error}.") from error
        for path, tab, own in (line.partition("\t") for line in lines if line.strip()):
            found.append((path, own if tab else task))
    if not found:
        raise ClientError("There are no images: name files or folders, or a list of them with --list=FILE.")
    if missing := [path for path, name in found if name is None]:
        raise ClientError(f"No task is given for {missing[0]!r}: use --task=NAME, or a tab and the task in --list.")
    return found


def _answer(
    ask: Callable[[list[bytes], list[str]], list[dict[str, Any]]],
    nothing: Mapping[str, Any],
    batch: Sequence[tuple[str, str]],
) -> list[dict[str, Any]]:
    """Returns the lines of some images; `nothing` stands in those of files that cannot be read."""
    lines: list[dict[str, Any]] = []
    contents: dict[int, bytes] = {}
    for index, (path, task) in enumerate(batch):
        lines.append({"path": path, "task": task})
        try:
            contents[index] = Path(path).read_bytes()
        # A path in a list may hold what no path can.
        except (OSError, ValueError) as error:
            reason = f"cannot be read: {getattr(error, 'strerror', error)}"
            lines[index].update(nothing, task_ok=None, image_ok=False, error=reason)
    if contents:
        rows = ask(list(contents.values()), [batch[index][1] for index in contents])
        for index, row in zip(contents, rows):
            lines[index].update(row)
    return lines


def _in_flight(work: Callable[[Any], Any], batches: Iterable[Any], count: int) -> Iterator[Any]:
    """Yields the results in order, while as many are worked on."""
    pool, waiting = concurrent.futures.ThreadPoolExecutor(count), collections.deque()
    try:
        for batch in batches:
            if len(waiting) == count:
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, batch))
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Those at work are not waited for: they may ask until --deadline.
        pool.shutdown(wait=False, cancel_futures=True)


def _predict(client: Client, options: argparse.Namespace) -> int:
    if (options.pack is None) != (options.export is None):
        raise ClientError("--pack and --export belong together: a pack is sent in the order of an export's weights.")
    if options.pack is not None and options.task is not None:
        raise ClientError("Give --task or --pack: a pack is of one task.")
    pack = None if options.pack is None else _read_pack(options.pack, options.export)
    images = _find_images(options.images, options.list, options.task if pack is None else pack.task)
    if pack is not None and (others := [name for _, name in images if name != pack.task]):
        raise ClientError(f"--list={options.list} names the task {others[0]!r}, and --pack sends {pack.task!r}.")
    ask = client.classify_files if pack is None else lambda files, _: pack.classify_files(client, files)
    return _ask_all(ask, {"labels": [], "scores": []}, images, options)


def _segment(client: Client, options: argparse.Namespace) -> int:
    folder, images = Path(options.output_dir), _find_images(options.images, options.list, options.task)
    names = [Path(path).name for path, _ in images]
    if twice := sorted({name for name, count in collections.Counter(names).items() if count > 1}):
        raise ClientError(
            f"Two images are called {twice[0]!r}, and would have the same label map in {str(folder)!r}; ask for them "
            "one after the other, with an --output_dir for each."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClientError(f"--output_dir={folder}: the folder cannot be made: {error.strerror}.") from None

    def keep(line: dict[str, Any]) -> dict[str, Any]:
        png, line["labels"] = line.pop("png", b""), None
        if png:
            path = folder / f"{Path(line['path']).name}.labels.png"
            part = path.with_name(f"{path.name}.part")
            part.write_bytes(_coloured(png))
            part.replace(path)
            line["labels"] = str(path)
        return line

    return _ask_all(client.segment_files, {}, images, options, keep)


def _detect(client: Client, options: argparse.Namespace) -> int:
    images, labels = _find_images(options.images, options.list, options.task), client.tasks()

    def keep(line: dict[str, Any]) -> dict[str, Any]:
        rows = zip(line["boxes"], line.pop("scores"), line.pop("classes"))
        line["boxes"] = [
            {
                "bbox": [left, top, right - left, bottom - top],
                "category_id": number + 1,
                "class": labels[line["task"]][number],
                "score": score,
            }
            for (top, left, bottom, right), score, number in rows
            if score >= options.min_score
        ]
        return line

    return _ask_all(client.detect_files, {"boxes": [], "scores": [], "classes": []}, images, options, keep)


def _coloured(png: bytes) -> bytes:
    """Returns a grey PNG of 8 bits with a palette, that of PASCAL VOC; its pixels are the same numbers."""
    head, colours = len(_PNG_START) + 8, bytearray(3 * 256)
    header = bytearray(png[head : head + 13])
    if not png.startswith(_PNG_START) or header[8:10] != b"\x08\x00":
        return png
    for place in range(3 * 256):
        for bit in range(8):
            colours[place] |= (place // 3 >> (3 * bit + place % 3) & 1) << (7 - bit)
    header[9] = 3
    chunks = b"IHDR" + header, b"PLTE" + colours
    whole = (len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") for chunk in chunks)
    return _PNG_START + b"".join(whole) + png[head + 17 :]


def _ask_all(
    ask: Callable[[list[bytes], list[str]], list[dict[str, Any]]],
    nothing: Mapping[str, Any],
    images: list[tuple[str, str]],
    options: argparse.Namespace,
    keep: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> int:
    """Asks about all images and prints a line for each, which is what `keep` makes of it; returns the exit status."""
    batches = [images[start : start + options.batch_size] for start in range(0, len(images), options.batch_size)]
    status = 0
    for lines in _in_flight(lambda batch: _answer(ask, nothing, batch), batches, options.in_flight):
        for line in map(keep, lines):
            print(json.dumps(line, ensure_ascii=False), flush=True)
            status = status if line["task_ok"] and line["image_ok"] else 1
    for path in filter(os.path.isdir, options.images):
        there = [file.suffix.lower() in SUFFIXES for file in _find_files(path)]
        if not all(there):
            passed = len(there) - sum(there)
            _say(f"Passed over in {path!r}: {passed} files of {len(there)}, which are no {', '.join(SUFFIXES)}.")
    return status


def _tasks(client: Client, options: argparse.Namespace) -> int:
    for task, classes, signature in client.listed():
        own = {} if signature == _FILES_OF_CLASSES else {"signature": signature}
        print(json.dumps({"task": task, "classes": classes, **own}, ensure_ascii=False))
    return 0


def _status(client: Client, options: argparse.Namespace) -> int:
    found = client.status()
    for line in found:
        print(json.dumps(line, ensure_ascii=False))
    return 0 if any(line["state"] == "AVAILABLE" for line in found) else 1


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    server = argparse.ArgumentParser(add_help=False)
    address = server.add_mutually_exclusive_group(required=True)
    address.add_argument("--url", help="the server's REST API, such as http://localhost:8501")
    address.add_argument("--grpc", help="its gRPC API, such as localhost:8500")
    server.add_argument("--model", default="piggyback", help="name of the export on the server")
    server.add_argument("--second_model", help="name of its second model; <model>_with_mask by default")
    version = server.add_mutually_exclusive_group()
    version.add_argument("--version", type=_count, help="number of the version; the newest by default")
    version.add_argument("--label", dest="version", help="label of the version, such as stable")
    server.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="NAME:VALUE",
        help="a header of each request, such as 'Authorization: Bearer TOKEN'; @FILE: one header per line of a "
        "file, which process lists do not show",
    )
    server.add_argument("--tls", action="store_true", help="with --grpc: use TLS; a --url with TLS begins with https")
    server.add_argument("--ca", metavar="FILE", help="with TLS: trust only the certificates in this file")
    server.add_argument("--timeout", type=float, default=20.0, help="seconds for one attempt of a request")
    server.add_argument("--deadline", type=float, default=60.0, help="seconds for all attempts of a request")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    files = argparse.ArgumentParser(add_help=False)
    files.add_argument("images", nargs="*", metavar="IMAGE", help="files, and folders with the JPEGs and PNGs in them")
    files.add_argument("--list", metavar="FILE", help="more images: in each line a path, or a path, a tab and a task")
    files.add_argument("--task", help="task of all images without one in --list")
    files.add_argument("--batch_size", type=_count, default=16, help="images per request")
    files.add_argument("--in_flight", type=_count, default=2, help="number of requests at a time")
    predict = commands.add_parser("predict", parents=[server, files], help="classify image files")
    predict.add_argument("--pack", help="a task that the server does not have; it is sent with each request")
    predict.add_argument("--export", help="with --pack: the export's version folder, or its assets/export.json")
    predict.set_defaults(run=_predict)
    segment = commands.add_parser(
        "segment", parents=[server, files], help="find the class of each pixel of image files"
    )
    where = "where FILE.labels.png is written; made if it is not there"
    segment.add_argument("--output_dir", required=True, metavar="FOLDER", help=where)
    segment.set_defaults(run=_segment)
    detect = commands.add_parser("detect", parents=[server, files], help="find a box around each object of image files")
    detect.add_argument("--min_score", type=float, default=0.3, help="leave out boxes with a lower score")
    detect.set_defaults(run=_detect)
    commands.add_parser("tasks", parents=[server], help="list tasks and classes").set_defaults(run=_tasks)
    commands.add_parser("status", parents=[server], help="list versions").set_defaults(run=_status)
    return parser


def _say(sentence: str) -> None:
    print(f"client.py: {_printable(sentence)}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    # Paths and the names of classes may hold what the terminal cannot show.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    fields = ("url", "grpc", "model", "second_model", "version", "timeout", "deadline", "ca", "tls")
    try:
        headers = _read_headers(options.header)
        client = Client(**{name: getattr(options, name) for name in fields}, headers=headers, on_wait=_say)
        status = options.run(client, options)
        sys.stdout.flush()
        return status
    except ClientError as error:
        _say(str(error))
        return 3 if isinstance(error, NoAnswerError) else 2
    except BrokenPipeError:
        # The reader of the output, such as `head`, has seen enough.
        _silence_stdout()
        return 141
    except OSError as error:
        _say(f"The output cannot be written: {error.strerror}.")
        _silence_stdout()
        return 2
    except KeyboardInterrupt:
        _say("interrupted.")
        return 130


def _silence_stdout() -> None:
    """Lets Python, which tries again at its end, write to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    status = main()
    if status == 130:
        # Python would wait for requests that are under way.
        os._exit(status)
    sys.exit(status)

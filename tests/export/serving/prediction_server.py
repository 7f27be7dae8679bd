"""Serves exports as TensorFlow Serving does, over gRPC and REST, for tests where that server is not installed.

    python -m tests.export.serving.prediction_server --model piggyback=DIR --batched piggyback

The graphs run in C++ sessions (`tests.export.c_api`); TensorFlow's Python is never loaded. What is the same: paths,
messages, codes of errors, the formats of JSON, which numbers of versions and labels are found, and how requests are
merged. What is not there: classify and regress, padding, splitting of large requests, models that are loaded later.
The first line that is printed is JSON with both ports and the process id; then it is ready.
"""

import argparse
import json
import os
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from google.protobuf.json_format import MessageToDict

from tests.export.serving import tensors
from tests.export.serving.models import DEFAULT, Models
from tests.export.serving.tensors import ServingError

MESSAGES = tensors.import_messages()
PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?(:predict|/metadata)?")
HTTP = {1: 499, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 501, 14: 503, 16: 401}
UNAVAILABLE, INTERNAL = 14, 13
CODES = {code.value[0]: code for code in grpc.StatusCode}
AVAILABLE = 30


class Failures:
    """Answers the first calls with an error, to see what a client does.

    Args:
        codes: The codes of the errors, in order.
    """

    def __init__(self, codes):
        self._codes, self._lock = list(codes), threading.Lock()

    def raise_next(self):
        """Raises the next error, if one is left."""
        with self._lock:
            if self._codes:
                raise ServingError(self._codes.pop(0), "The server was told to fail.")


class Service(MESSAGES.prediction_service.PredictionServiceServicer, MESSAGES.model_service.ModelServiceServicer):
    """Both services of gRPC."""

    def __init__(self, models, failures):
        self._models, self._failures = models, failures

    def Predict(self, request, context):
        try:
            self._failures.raise_next()
            spec, answer = request.model_spec, MESSAGES.predict.PredictResponse()
            version, _ = self._models.signatures(spec.name, *_version(spec))
            inputs = {name: tensors.from_proto(value) for name, value in request.inputs.items()}
            signature = spec.signature_name or DEFAULT
            for name, array in self._models.predict(spec.name, version, signature, inputs).items():
                tensors.to_proto(array, answer.outputs[name])
            answer.model_spec.name, answer.model_spec.signature_name = spec.name, signature
            answer.model_spec.version.value = version
            return answer
        except ServingError as error:
            context.abort(CODES[error.code], str(error))

    def GetModelMetadata(self, request, context):
        try:
            spec, answer = request.model_spec, MESSAGES.metadata.GetModelMetadataResponse()
            answer.model_spec.CopyFrom(spec)
            answer.model_spec.version.value, signatures = self._models.signatures(spec.name, *_version(spec))
            answer.metadata["signature_def"].Pack(_signature_map(signatures))
            return answer
        except ServingError as error:
            context.abort(CODES[error.code], str(error))

    def GetModelStatus(self, request, context):
        try:
            answer = MESSAGES.status.GetModelStatusResponse()
            for version in self._models.versions(request.model_spec.name, *_version(request.model_spec)):
                answer.model_version_status.add(version=version, state=AVAILABLE).status.SetInParent()
            return answer
        except ServingError as error:
            context.abort(CODES[error.code], str(error))


def _signature_map(signatures):
    """Returns signatures as the message that describes them."""
    described = MESSAGES.metadata.SignatureDefMap()
    for name, parts in signatures.items():
        found = described.signature_def[name]
        found.method_name = "tensorflow/serving/predict"
        for part, target in zip(parts, (found.inputs, found.outputs), strict=True):
            for key, (tensor, dtype, shape) in part.items():
                target[key].name, target[key].dtype = tensor, dtype
                for size in shape:
                    target[key].tensor_shape.dim.add(size=size)
    return described


def _version(spec):
    choice = spec.WhichOneof("version_choice")
    return spec.version.value if choice == "version" else None, spec.version_label or None


def make_handler(models, failures):
    """Returns the class that answers REST."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format, *arguments):
            pass

        def do_GET(self):
            self._answer(lambda name, version, label, method, body: self._get(name, version, label, method))

        def do_POST(self):
            self._answer(self._post)

        def _answer(self, answer):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found, status = PATH.fullmatch(self.path), 200
            try:
                if not found:
                    raise ServingError(tensors.INVALID_ARGUMENT, f"Malformed request: {self.command} {self.path}")
                name, version, label, method = found.groups()
                content = answer(name, int(version) if version else None, label, method, body)
            except ServingError as error:
                status, content = HTTP.get(error.code, 500), {"error": str(error)}
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _post(self, name, version, label, method, body):
            if method != ":predict":
                raise ServingError(tensors.INVALID_ARGUMENT, f"Malformed request: POST {self.path}")
            failures.raise_next()
            version, signatures = models.signatures(name, version, label)
            content = tensors.read_body(body)
            signature = content.get("signature_name", DEFAULT)
            if signature not in signatures:
                message = f'Serving signature name: "{signature}" not found in signature def'
                raise ServingError(tensors.INVALID_ARGUMENT, message)
            takes = {key: dtype for key, (_, dtype, _) in signatures[signature][0].items()}
            inputs, rows = tensors.from_json(content, takes)
            return tensors.to_json(models.predict(name, version, signature, inputs), rows)

        def _get(self, name, version, label, method):
            if method == "/metadata":
                version, signatures = models.signatures(name, version, label)
                found = MessageToDict(
                    _signature_map(signatures),
                    preserving_proto_field_name=True,
                    always_print_fields_with_no_presence=True,
                )
                spec = {"name": name, "signature_name": "", "version": str(version)}
                return {"model_spec": spec, "metadata": {"signature_def": found}}
            if method:
                raise ServingError(tensors.INVALID_ARGUMENT, f"Malformed request: GET {self.path}")
            status = {"error_code": "OK", "error_message": ""}
            found = models.versions(name, version, label)
            return {
                "model_version_status": [{"version": str(v), "state": "AVAILABLE", "status": status} for v in found]
            }

    return Handler


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--label", action="append", default=[], metavar="NAME:LABEL=VERSION")
    parser.add_argument("--grpc_port", type=int, default=0)
    parser.add_argument("--rest_port", type=int, default=0)
    parser.add_argument("--batched", help="name of the model whose requests are merged")
    parser.add_argument("--max_batch_size", type=int, default=1000)
    parser.add_argument("--batch_timeout_ms", type=float, default=2)
    parser.add_argument("--max_message", type=int, default=4 * 2**20, help="bytes of a request over gRPC")
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--fail", type=int, action="append", default=[], help="code of an error to begin with")
    options = parser.parse_args()
    labels = {}
    for text in options.label:
        model, label, version = re.fullmatch("(.+):(.+)=([0-9]+)", text).groups()
        labels[model, label] = int(version)
    batching = {"max_batch_size": options.max_batch_size, "timeout": options.batch_timeout_ms / 1000}
    models = Models(dict(text.split("=", 1) for text in options.model), labels, options.batched, batching)
    failures = Failures(options.fail)
    limits = [("grpc.max_receive_message_length", options.max_message), ("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(options.threads), options=limits)
    service = Service(models, failures)
    MESSAGES.prediction_service.add_PredictionServiceServicer_to_server(service, server)
    MESSAGES.model_service.add_ModelServiceServicer_to_server(service, server)
    port = server.add_insecure_port(f"127.0.0.1:{options.grpc_port}")
    server.start()
    rest = ThreadingHTTPServer(("127.0.0.1", options.rest_port), make_handler(models, failures))
    loaded = [name for name in sys.modules if name.startswith(("tensorflow.python", "keras"))]
    assert not loaded, loaded
    print(json.dumps({"grpc": port, "rest": rest.server_address[1], "pid": os.getpid()}), flush=True)
    rest.serve_forever()


if __name__ == "__main__":
    main()

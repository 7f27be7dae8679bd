"""TLS and headers: what the client needs of a server that is not open to everybody."""

import http.server
import json
import shutil
import ssl
import subprocess
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from export.deployment.client import Client, ClientError, _message_classes, main
from tests.export.serving.conftest import free_port

VERSION = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}


@pytest.fixture(scope="module", name="certificate")
def _certificate(tmp_path_factory):
    """A certificate for localhost that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    found = types.SimpleNamespace(ca=folder / "ca.pem", key=folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", found.key, "-out", found.ca], check=True, capture_output=True)
    return found


@pytest.fixture(scope="module", params=["rest", "grpc"], name="secured")
def _secured(request, certificate):
    """A server with TLS that keeps the headers of its last request, and its address as a client takes it."""
    kept = types.SimpleNamespace(headers={})
    if request.param == "grpc":
        answer = _message_classes()["Statuses"]()
        answer.model_version_status.add(version=1, state=30)

        def status(_, context):
            kept.headers = dict(context.invocation_metadata())
            return answer.SerializeToString()

        methods = {"GetModelStatus": grpc.unary_unary_rpc_method_handler(status)}
        server = grpc.server(ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("tensorflow.serving.ModelService", methods)]
        )
        pair = certificate.key.read_bytes(), certificate.ca.read_bytes()
        port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([pair]))
        server.start()
        kept.address = {"grpc": f"localhost:{port}"}
        yield kept
        server.stop(None)
        return

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            kept.headers = {name.lower(): value for name, value in self.headers.items()}
            elsewhere = self.path.startswith("/away/")
            body = json.dumps({"model_version_status": [VERSION]}).encode()
            self.send_response(302 if elsewhere else 200)
            if elsewhere:
                self.send_header("Location", self.path.removeprefix("/away"))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.ca, certificate.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kept.address = {"url": f"https://localhost:{server.server_port}"}
    yield kept
    server.shutdown()
    server.server_close()


def test_a_server_with_tls_is_asked_with_headers(secured, certificate):
    headers = {"Authorization": "Bearer secret", "X-Team": "birds and more"}
    client = Client(**secured.address, ca=str(certificate.ca), headers=headers, deadline=5)
    assert client.status() == [{"version": 1, "state": "AVAILABLE", "error": ""}]
    assert (secured.headers["authorization"], secured.headers["x-team"]) == tuple(headers.values())


def test_a_certificate_that_is_not_trusted_is_no_matter_of_time(secured):
    client = Client(**secured.address, tls="grpc" in secured.address, headers={"Authorization": "Bearer s"})
    secured.headers = {}
    with pytest.raises(ClientError, match="has a certificate that is not trusted .*--ca=FILE"):
        client.status()
    assert secured.headers == {}


# gRPC has no redirections.
@pytest.mark.parametrize("secured", ["rest"], indirect=True)
def test_headers_are_not_sent_where_a_server_points_to(secured, certificate):
    client = Client(url=f"{secured.address['url']}/away", ca=str(certificate.ca), headers={"A": "b"})
    with pytest.raises(ClientError, match=r"refused the request \(HTTP 302\)"):
        client.status()


def test_headers_come_from_the_command_line_or_a_file(secured, certificate, tmp_path, capsys):
    (tmp_path / "secret.txt").write_text("Authorization: Bearer of: news \n\nX-Team:birds\n")
    ((kind, address),) = secured.address.items()
    options = [
        f"--{kind}={address}",
        f"--ca={certificate.ca}",
        f"--header=@{tmp_path}/secret.txt",
        "--header=X-Team: b",
    ]
    assert main(["status", *options]) == 0
    assert (secured.headers["authorization"], secured.headers["x-team"]) == ("Bearer of: news", "b")
    capsys.readouterr()


@pytest.mark.parametrize("text", ["secret", "secret\n: x", "@{folder}/bad.txt", "a: secret\x07", "a: s\u00e9cret"])
def test_what_is_no_header_is_refused_and_not_shown(text, tmp_path, capsys):
    (tmp_path / "bad.txt").write_text("a: b\nsecret\n")
    text = text.format(folder=tmp_path)
    assert main(["status", f"--url=http://localhost:{free_port()}", f"--header={text}"]) == 2
    error = capsys.readouterr().err
    assert "a header should look like NAME: VALUE" in error
    assert "cret" not in error.replace(str(tmp_path), "")


def test_a_file_of_headers_that_is_not_there(capsys):
    assert main(["status", "--url=http://localhost:1", "--header=@/none"]) == 2
    assert capsys.readouterr().err == "client.py: --header=@/none cannot be read: No such file or directory.\n"

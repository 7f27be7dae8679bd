"""How many bytes two workers send each other, with the gradients of masks in float32 and in bfloat16.

    PIGGYBACK_REALDATA=... python benchmarks/worker_bytes.py

Both workers run on this machine and train masks of digits on MobileNetV2 at 96 px with ImageNet weights. TensorFlow's
connections between them go through a relay in this process, which counts what it passes on, in both directions: the
gradients with the framing of gRPC, without the headers of TCP and IP. Connections that hold the workers together, with
a message a second, do not go through it. Counted is what passes in 100 steps, from the end of the fifth on. At the end
the masks of both workers must be the same bits. Writes results/worker_bytes.json.
"""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from typing import Any

from common import Results, markdown, parser

from tests.training.workers import free_ports, tf_config

KINDS = ("float32", "bfloat16")
_STEPS, _FIRST = 100, 5
# Few images: digits make a few more steps of them than are counted.
_BATCH = 12


class Relay:
    """Passes connections on to a port of this machine and counts the bytes of both directions.

    Args:
        target: The port.

    Attributes:
        port: Where it listens.
        count: Bytes so far.
    """

    def __init__(self, target: int):
        self._target, self._lock, self.count = target, threading.Lock(), 0
        self._server = socket.create_server(("localhost", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # Nobody listens yet: gRPC tries again when this one is closed.
                come, _ = self._server.accept()
                with contextlib.ExitStack() as stack:
                    stack.callback(come.close)
                    gone = socket.create_connection(("localhost", self._target))
                    stack.pop_all()
                for pair in ((come, gone), (gone, come)):
                    pair[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 18):
                with self._lock:
                    self.count += len(data)
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def measure(kind: str) -> dict[str, Any]:
    """Returns the bytes of 100 steps, of all that is sent in both directions."""
    ports = free_ports(2)
    relays = [Relay(port) for port in ports]
    workers = []
    for index in range(2):
        # The others are met at their own ports, and TensorFlow finds them at those of the relays.
        seen = [ports[index] if place == index else relays[place].port for place in range(2)]
        environment = os.environ | {"TF_CONFIG": tf_config(ports, index), "RELAYED": tf_config(seen, index)}
        command = [sys.executable, __file__, f"--worker={kind}"]
        workers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    counts, learned = {}, []
    try:
        for line in workers[0].stdout or ():
            if line.startswith('{"step"'):
                counts[json.loads(line)["step"]] = sum(relay.count for relay in relays)
            elif line.startswith('{"masks"'):
                learned.append(json.loads(line))
        learned += [json.loads(line) for line in workers[1].stdout or () if line.startswith('{"masks"')]
        if [worker.wait() for worker in workers] != [0, 0] or learned[0] != learned[1]:
            sys.exit(f"The workers did not end well, or not with the same masks: {learned}")
    finally:
        for worker in workers:
            worker.kill()
    return {"steps": _STEPS, "bytes": counts[_FIRST + _STEPS] - counts[_FIRST], **learned[0]}


def work(kind: str) -> None:
    """Trains as one of the workers."""
    import keras
    import numpy as np
    from tasks import mobilenet

    from piggyback_tf.data import load_data
    from piggyback_tf.masking import mask_config, masked_weights
    from piggyback_tf.methods.piggyback import Piggyback
    from piggyback_tf.training import InputConfig, TrainConfig, prepare_devices, train_task
    from piggyback_tf.training.cluster import read_cluster
    from piggyback_tf.training.team import joined_team

    class Steps(keras.callbacks.Callback):
        """Says when a step is done."""

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            print(json.dumps({"step": batch + 1}), flush=True)

    class Counted(Piggyback):
        """Masks, with a line for each step."""

        def callbacks(self, model: keras.Model) -> list[keras.callbacks.Callback]:
            return [Steps()]

    def end(sentence: str, number: int) -> Any:
        print(sentence, file=sys.stderr, flush=True)
        os._exit(1)

    with joined_team(read_cluster(), 300, end) as team:
        os.environ["TF_CONFIG"] = os.environ["RELAYED"]
        with prepare_devices("multi_worker", "none", deterministic=False).scope():
            config = TrainConfig(epochs=1, batch_size=_BATCH, chance_epochs=0, mask_gradients=kind)
            inputs = InputConfig(cache="none")
            trained = train_task(Counted(), mobilenet(), load_data("digits"), config, inputs, team=team)
        digest = hashlib.sha256()
        masks = [np.asarray(weight.mask_real) for weight in masked_weights(trained.model).values()]
        threshold = mask_config(trained.model).threshold
        for values in masks:
            digest.update(values.tobytes())
        found = {
            "masks": digest.hexdigest(),
            "masked_weights": sum(values.size for values in masks),
            "zeros": int(sum((values < threshold).sum() for values in masks)),
            "validation_error": trained.history["val_error"][-1],
        }
        print(json.dumps(found))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--worker", choices=KINDS, help="Used by the script itself.")
    options = arguments.parse_args()
    if options.worker:
        work(options.worker)
        return
    results = Results("worker_bytes")
    rows = {kind: results.run(kind, lambda kind=kind: measure(kind)) for kind in KINDS}
    table = [
        [kind, f"{row['bytes'] / 1e6:,.0f} MB", f"{row['bytes'] / row['steps'] / row['masked_weights']:.2f}"]
        for kind, row in rows.items()
    ]
    print(markdown(["gradients of masks", "100 steps", "bytes for each masked weight and step"], table))


if __name__ == "__main__":
    main()

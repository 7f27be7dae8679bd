"""The text files of a deployment: configuration of the server, Docker Compose, Kubernetes."""

import json
import re
import textwrap
from pathlib import Path

from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from ..servable.folder import SECOND
from ..servable.options import MIB
from . import templates
from .memory import ServerMemory
from .options import ServingOptions

# A request may have so many times the images that run at once.
_SPLITS = 8


def models_config(options: ServingOptions, loaded: int) -> str:
    """Returns `models.config`: both servables, how many of their newest versions stay loaded, and labels.

    Args:
        options: Names and labels.
        loaded: How many versions stay loaded.
    """
    config = ModelServerConfig()
    for name, path in ((options.name, ""), (options.second_name, f"/{SECOND}")):
        model = config.model_config_list.config.add()
        model.name, model.base_path, model.model_platform = name, f"/models/{options.name}{path}", "tensorflow"
        # Not `specific`: there a label could not be moved to a new version, since a server refuses the whole file as
        # long as that version is not loaded.
        model.model_version_policy.latest.num_versions = loaded
        model.version_labels.update(options.labels)
    text = templates.MODELS.substitute(poll=options.poll_seconds, config=text_format.MessageToString(config))
    # As the server will; it raises if this is no such text.
    text_format.Parse(text, ModelServerConfig())
    return text


def batching_threads(options: ServingOptions) -> str:
    """Returns `batching_parameters.txt`: what all models of the server share."""
    return templates.THREADS.substitute(cpus=options.cpus, second=options.second_name)


def batching_params(options: ServingOptions) -> str:
    """Returns `batching_params.pbtxt`, which a version has that is batched."""
    return templates.BATCHING.substitute(
        # No request is larger than what may wait.
        largest=options.max_batch_size * min(_SPLITS, options.max_enqueued_batches),
        batch=options.max_batch_size,
        timeout=options.batch_timeout_micros,
        waiting=options.max_enqueued_batches,
    )


def monitoring() -> str:
    """Returns `monitoring.config`: that the server has a page for Prometheus."""
    return templates.MONITORING


def compose(options: ServingOptions, memory: ServerMemory, export: str) -> str:
    """Returns `docker-compose.yml`.

    Args:
        options: What to run.
        memory: What it needs.
        export: The path of the export, seen from the file's folder.
    """
    return templates.COMPOSE.substitute(
        _common(options, memory),
        flags=_flags(options, 6),
        # JSON is YAML; Compose would take a dollar sign for a variable.
        export=json.dumps(export, ensure_ascii=False).replace("$", "$$"),
    )


def kubernetes(options: ServingOptions, memory: ServerMemory, disk: int) -> str:
    """Returns `kubernetes.yaml`.

    Args:
        options: What to run.
        memory: What it needs.
        disk: Bytes of the export's files.
    """
    several = options.replicas > 1
    return templates.KUBERNETES.substitute(
        _common(options, memory),
        flags=_flags(options, 12),
        replicas=options.replicas,
        access="ReadWriteMany" if several else "ReadWriteOnce",
        strategy="RollingUpdate" if several else "Recreate",
        models=_block(models_config(options, memory.loaded)),
        threads=_block(batching_threads(options)),
        monitoring=_block(monitoring()),
        disk=max(1024, -(-3 * disk // MIB)),
        request=memory.request,
        arrays=-(-memory.arrays // MIB),
        working=-(-memory.working // MIB),
        decoding=-(-memory.decoding // MIB),
        loaded=memory.loaded,
    )


def _common(options: ServingOptions, memory: ServerMemory) -> dict[str, str | int]:
    # Names in Kubernetes and Compose are in lower case, with hyphens.
    slug = re.sub(r"[._]", "-", options.name.lower())
    return {
        "slug": slug,
        "name": options.name,
        "image": options.image,
        "cpus": options.cpus,
        "limit": memory.limit,
        "health": " && ".join(templates.HEALTH % name for name in (options.name, options.second_name)),
    }


def _flags(options: ServingOptions, indent: int) -> str:
    lines = (flag.replace("$poll", str(options.poll_seconds)) for flag in templates.FLAGS)
    return "\n".join(f"{' ' * indent}- {line.replace('$cpus', str(options.cpus))}" for line in lines)


def _block(text: str) -> str:
    """Returns the content of a block scalar of YAML."""
    return textwrap.indent(text.rstrip("\n"), " " * 4)


def read_client() -> bytes:
    """Returns the client, a program of one file."""
    return (Path(__file__).parent / "client.py").read_bytes()

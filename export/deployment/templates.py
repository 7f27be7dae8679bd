"""The text of the files of a deployment, as `string.Template`."""

from string import Template

THREADS = Template("""\
# Written by `piggyback export serving`. BatchingParameters of the whole server: with
# --enable_per_model_batching_parameters it takes from here the threads alone, which all models share. Sizes and times
# stand in the file batching_params.pbtxt of each version that is batched. $second has none: a mask has no
# batch as its first dimension, so that its requests cannot be merged.
num_batch_threads { value: $cpus }
thread_pool_name { value: "batching" }
""")

BATCHING = Template("""\
# Written by `piggyback export serving`. BatchingParameters of this version.
# The most images of one request; it is split into batches.
max_batch_size { value: $largest }
enable_large_batch_splitting { value: true }
# The most images that run through the network at once.
max_execution_batch_size { value: $batch }
# How long a request waits for others, in microseconds. With 0 it never waits, and batches form under load alone.
batch_timeout_micros { value: $timeout }
# What comes when so many batches wait is refused as UNAVAILABLE, and can be asked again.
max_enqueued_batches { value: $waiting }
# No allowed_batch_sizes: batches would be filled up with images that nobody asked for.
# Images of another size must fail by themselves, and not be filled up with zeros.
pad_variable_length_inputs: false
""")

MODELS = Template("""\
# Written by `piggyback export serving`. ModelServerConfig; the server reads it again every $poll seconds.
$config""")

MONITORING = """\
# Written by `python -m export.serving`. MonitoringConfig: Prometheus reads this path at the port of REST.
prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }
"""

# Asks with bash alone whether a version of a model is loaded: the image has neither curl nor wget.
HEALTH = (
    r"exec 3<>/dev/tcp/127.0.0.1/8501 && printf 'GET /v1/models/%s HTTP/1.1\r\nHost: localhost\r\nConnection: "
    r"close\r\n\r\n' >&3 && "
    """grep -q '"AVAILABLE"' <&3"""
)

FLAGS = (
    "--model_config_file=/deployment/models.config",
    "--model_config_file_poll_wait_seconds=$poll",
    # Without it a server with labels does not start, since no version is loaded when it reads them.
    "--allow_version_labels_for_unavailable_models=true",
    "--enable_batching=true",
    "--batching_parameters_file=/deployment/batching_parameters.txt",
    "--enable_per_model_batching_parameters=true",
    "--monitoring_config_file=/deployment/monitoring.config",
    # In a container TensorFlow counts the cores of the machine.
    "--tensorflow_intra_op_parallelism=$cpus",
    "--tensorflow_inter_op_parallelism=$cpus",
)

COMPOSE = Template(r"""# Written by `piggyback export serving`; start it with: docker compose up --detach
name: "$slug"
services:
  serving:
    image: "$image"
    # There is no image of TensorFlow Serving for other processors.
    platform: linux/amd64
    # No flag for large messages: the server takes gRPC messages up to 2 GB. Clients take answers up to 4 MB unless told
    # otherwise.
    command:
$flags
    ports:
      - "8500:8500" # gRPC
      - "8501:8501" # REST
    volumes:
      # Folders, not single files: a file that is replaced would stay the old one in the container.
      - type: bind
        source: $export
        target: /models/$name
        read_only: true
      - type: bind
        source: .
        target: /deployment
        read_only: true
    healthcheck:
      # Both models. The image has bash and grep, but neither curl nor wget. The port opens when all models are loaded.
      test:
        - CMD
        - bash
        - -c
        - >-
          $health
      interval: 10s
      timeout: 5s
      retries: 3
      start_period: 10m
    deploy:
      resources:
        limits:
          cpus: "$cpus"
          memory: ${limit}m
    restart: unless-stopped
""")

KUBERNETES = Template("""\
# Written by `piggyback export serving`; apply it with: kubectl apply --filename=kubernetes.yaml
#
# The export lies on a volume, not in an image: running servers load a version that is written there.
# Copy the export's folder, with its folder with_mask, to the top of the volume before the servers start.
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: $slug-export
spec:
  # ReadWriteOnce: one machine at a time. Several servers on several machines need ReadWriteMany.
  accessModes:
    - $access
  resources:
    requests:
      # Three times what the export takes now.
      storage: ${disk}Mi
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: $slug-config
data:
  models.config: |
$models
  batching_parameters.txt: |
$threads
  monitoring.config: |
$monitoring
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: "$slug"
  labels:
    app: "$slug"
spec:
  replicas: $replicas
  selector:
    matchLabels:
      app: "$slug"
  strategy:
    # Recreate where only one machine can have the volume.
    type: $strategy
  template:
    metadata:
      labels:
        app: "$slug"
      annotations:
        # For a Prometheus that finds its targets by these names.
        prometheus.io/scrape: "true"
        prometheus.io/port: "8501"
        prometheus.io/path: /monitoring/prometheus/metrics
    spec:
      # What Kubernetes' standard `restricted` asks for. The files of the volume must be readable for everybody.
      automountServiceAccountToken: false
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        seccompProfile:
          type: RuntimeDefault
      nodeSelector:
        kubernetes.io/arch: amd64
      containers:
        - name: serving
          image: "$image"
          args:
$flags
          ports:
            - name: grpc
              containerPort: 8500
            - name: rest
              containerPort: 8501
          # The port opens when all models are loaded and warmed up: ten minutes are allowed for that.
          startupProbe:
            httpGet:
              path: /v1/models/$name
              port: rest
            periodSeconds: 5
            failureThreshold: 120
          # Both models. The path of a model that is there but not loaded answers with status 200, too.
          readinessProbe:
            exec:
              command:
                - bash
                - -c
                - >-
                  $health
            periodSeconds: 10
            timeoutSeconds: 5
          livenessProbe:
            httpGet:
              path: /v1/models/$name
              port: rest
            periodSeconds: 20
            timeoutSeconds: 10
            failureThreshold: 3
          resources:
            requests:
              cpu: "$cpus"
              memory: ${request}Mi
            limits:
              # $arrays MiB of arrays a version, of which $loaded stay loaded and one more comes while a new one
              # replaces an old one; $working MiB for calls that run, and $decoding MiB if all of them decode the
              # largest images.
              memory: ${limit}Mi
          securityContext:
            allowPrivilegeEscalation: false
            capabilities:
              drop:
                - ALL
          volumeMounts:
            - name: export
              mountPath: /models/$name
              readOnly: true
            - name: config
              mountPath: /deployment
              readOnly: true
      volumes:
        - name: export
          persistentVolumeClaim:
            claimName: $slug-export
        - name: config
          configMap:
            name: $slug-config
---
apiVersion: v1
kind: Service
metadata:
  name: "$slug"
spec:
  selector:
    app: "$slug"
  ports:
    - name: grpc
      port: 8500
      targetPort: grpc
    - name: rest
      port: 8501
      targetPort: rest
""")

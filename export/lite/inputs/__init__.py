"""The designs `switch` and `input`: one model.tflite that takes the masks of tasks as inputs."""

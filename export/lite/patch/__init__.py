"""The design `patch`: one base.tflite, and files of tasks by which its constants are changed on the device."""

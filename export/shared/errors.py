"""What exports raise."""


class ExportError(Exception):
    """An export cannot be written, or is not what it should be; the message says why."""

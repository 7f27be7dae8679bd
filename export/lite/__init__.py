"""What `python -m export.litert` is made of."""

"""One file for each source of backbones; every file here registers its own networks when it is imported.

Keras is imported inside the build functions, so that listing the names stays quick.
"""

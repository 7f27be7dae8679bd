"""The flags of train.py, for as long as a test needs them."""

import contextlib

from absl import flags

from piggyback_tf import flags as own_flags


@contextlib.contextmanager
def defined_flags():
    """Defines the flags, so that other tests meet absl's as they were; yields what parses a command line."""
    before = set(flags.FLAGS)
    own_flags.define_flags()

    def parse(*arguments):
        flags.FLAGS.unparse_flags()
        return flags.FLAGS(["train.py", *arguments])

    try:
        yield parse
    finally:
        flags.FLAGS.unparse_flags()
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        own_flags.HEADINGS.clear()

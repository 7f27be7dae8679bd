"""Learns a task on a frozen backbone, or several in turn: python train.py --flagfile=configs/quickstart.flags

Where the package is installed, it is `piggyback train`.
"""

import sys

from piggyback_tf.commands.answers import answering_interrupts


def _main() -> int:
    from piggyback_tf.commands.train import PROGRAM

    return PROGRAM.main(sys.argv[1:], "train.py")


if __name__ == "__main__":
    sys.exit(answering_interrupts(_main, "train.py"))

"""Learns a task on a frozen backbone, or several in turn: python train.py --flagfile=configs/quickstart.flags

Where the package is installed, it is `piggyback train`.
"""

import sys

from piggyback_tf.commands.train import PROGRAM

if __name__ == "__main__":
    PROGRAM(sys.argv[1:], "train.py")

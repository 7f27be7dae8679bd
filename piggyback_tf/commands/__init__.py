"""The commands of `python -m piggyback_tf`, one file each, and what runs them.

`train`, as the exports, has its settings as flags of absl: `absl_command.py` runs it. `train_request.py` and
`train_check_images.py` are steps of it. All others have arguments of argparse, which `argparse_command.py` reads: their
files have `add_command`, which declares the arguments and says which function runs the command. It is imported whatever
the command, so that TensorFlow may only be imported inside functions. `answers.py` says how every command ends.
"""

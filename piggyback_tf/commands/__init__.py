"""The commands of `python -m piggyback_tf`, one file each.

A command's file has `add_command`, which declares its arguments and says which function runs it. It is imported
whatever the command, so that TensorFlow may only be imported inside functions.
"""

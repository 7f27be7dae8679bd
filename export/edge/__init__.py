"""What goes to a device, and nothing else: the patcher, which puts tasks on a base there, in Python and in C++."""

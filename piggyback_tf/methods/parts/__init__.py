"""What methods are made of and is no method itself: memory, added losses, one network or one head layer for all tasks.

What `methods/base.py` or several methods need is here, and what is long enough to be read apart from its method.
"""

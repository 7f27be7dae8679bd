"""What goes to a device, and nothing else: the patcher, which puts tasks on a base there, in Python and in C++.

What decodes image files there goes with it, but lies elsewhere, since trainings need it: `piggyback_tf/data/images.py`,
of which an export has a copy, `piggyback_images.py`.
"""

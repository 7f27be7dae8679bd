"""Files that a device reads: the manifest of a base, the files of tasks, and the patcher for both."""

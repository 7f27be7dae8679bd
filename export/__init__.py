"""One base and many tasks as files that other programs run, without this package."""

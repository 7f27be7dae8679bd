"""What a SavedModel of a base and its tasks is made of."""

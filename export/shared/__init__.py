"""What all kinds of exports need: packs that fit a base, what tasks change in it, graphs, images, folders, errors."""

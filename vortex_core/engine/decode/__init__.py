"""A decode step: buffers, selection, attention, graphs, and the loops that drive it."""

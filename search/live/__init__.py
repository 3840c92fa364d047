"""Runs as they go on: a view for terminals and a page on the loopback. Both only read."""

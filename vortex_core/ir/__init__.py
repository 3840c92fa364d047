"""The typed IR: nodes over named dimensions, verified, canonical, content-addressed. Imports no torch."""

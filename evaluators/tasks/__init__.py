"""Tasks: seeded generators of evaluation items."""

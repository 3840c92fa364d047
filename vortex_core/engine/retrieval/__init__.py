"""A small GLM-4-MoE-Lite that learns one thing, to look up keys: real latent attention where no hub can be reached."""

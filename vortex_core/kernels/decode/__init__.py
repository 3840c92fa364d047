"""Paged decode attention: GQA and latent kernels, their launchers, and how work is split over a GPU."""

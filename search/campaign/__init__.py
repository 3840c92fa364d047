"""A campaign: its driver, strategies, archive, finals and what flows back to proposers."""

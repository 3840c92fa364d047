"""Launch configurations found by measurement, and the cache that keeps them."""

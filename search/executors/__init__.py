"""Who runs stages: the interface the driver needs, and Ray behind it."""

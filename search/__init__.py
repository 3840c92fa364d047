"""Search: campaigns, strategies, the archive, the event store, the cluster and the command line."""

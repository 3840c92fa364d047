"""Page selection: top-k, top-p, threshold and union in one launch a stream."""

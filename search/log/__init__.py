"""The event log of a run, the files beside it, and the state that folds them."""

"""The event log of a run, the texts that it names, and the state that folds them."""

"""What the embedded engine and the SGLang plug-in share: a flow on a pool, its decode step, attention, budgets."""

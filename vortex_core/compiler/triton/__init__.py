"""The Triton backend: programs lowered to a few fused kernels. See `lower.py`, `codegen.py` and `flow.py`."""

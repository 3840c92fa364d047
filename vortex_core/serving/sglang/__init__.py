"""The SGLang plug-in: attention backend `vortex`, registered through SGLang's own entry points."""

from __future__ import annotations

NAME = "vortex"
# Versions whose interface was read and run against; `contract.py` says what is expected of others.
SUPPORTED = ("0.5.16", "0.5.17", "0.5.18", "0.5.19", "0.5.20", "0.5.21")

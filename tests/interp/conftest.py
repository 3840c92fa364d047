"""Cases under Triton's interpreter run without what it computes for nothing."""

from __future__ import annotations

import os

if os.environ.get("TRITON_INTERPRET") == "1":  # a process of the cases, not the one that starts them
    import tests.interp.quick  # noqa: F401

"""Who runs stages: the interface the driver needs, and Ray behind it."""

from __future__ import annotations

import os

# Ray prints what its node daemon reports (every worker that we kill, say) on the driver's stdout, which belongs to
# results. A lost worker reaches the event log as a typed error. Ray reads this when it is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")

"""An environment without its secrets, known by their names and by their values."""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAMES = re.compile(
    r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|PRIVATE|COOKIE|(^|_)(AUTH|PAT|PWD|PASS|DSN)($|_)", re.IGNORECASE
)
# Names that say so, and whose values are none.
_HARMLESS = frozenset({"PWD", "OLDPWD", "TOKENIZERS_PARALLELISM", "SSH_AUTH_SOCK", "PATH", "HOME"})
_VALUES = re.compile(
    r"[a-z][a-z0-9+.\-]*://[^\s/@:]*:[^\s/@]+@"  # a password in a URL
    r"|[?&;](?:[a-z_]*(?:key|token|secret|password|signature|sig))=[^&\s]{6,}"  # or after its question mark
    r"|\b(?:sk|pk|key)-[A-Za-z0-9_\-]{6,}"
    r"|\b(?:ghp|gho|ghu|ghs|ghr|github_pat|glpat|hf|xox[abprs]|npm|pypi|nvapi|gsk|r8|xai)[_\-][A-Za-z0-9_\-]{10,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_\-]{20,}"
    r"|\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}"  # a signed web token
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\b(?:password|passwd|pwd|secret|token|api_?key)\s*[=:]\s*[^\s;,]{6,}"  # connection strings, JSON
    r"|\bBearer\s+[A-Za-z0-9_\-.]{10,}",
    re.IGNORECASE,
)
_SHORTEST = 12  # characters of a secret that is looked for inside other values


def is_secret(name: str, value: str) -> bool:
    """Whether an environment variable is to be kept from processes that need no secret."""
    return name not in _HARMLESS and (_NAMES.search(name) is not None or _VALUES.search(value) is not None)


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """What is left for processes that need no secret: nor are there copies of one under other names."""
    hidden = {name for name, value in environment.items() if is_secret(name, value)}
    values = {environment[name] for name in hidden} - {""}
    # A secret variable may also hold a folder, which many others lie in.
    long = [value for value in values if len(value) >= _SHORTEST and not value.startswith(("/", "~"))]
    return {
        name: value
        for name, value in environment.items()
        if name in _HARMLESS
        or not (name in hidden or value in values or any(secret in value for secret in long))
    }

"""For tests: a local model server and the conformance suite every proposer passes."""

from __future__ import annotations

from agents.testing.conformance import ProposerConformance
from agents.testing.server import FakeModelServer, Received, Scripted

__all__ = ["FakeModelServer", "ProposerConformance", "Received", "Scripted"]

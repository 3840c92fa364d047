"""What a campaign would look at: a proposer that makes IR asks before it proposes, which costs less than a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from agents.base import Room
from search.config import CampaignConfig
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.cost import kv_row_bytes, state_bytes_per_token
from vortex_core.ir.flow import Flow
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.layers import check_dense_layers, check_reuse
from vortex_core.ir.program import Program
from vortex_core.serving.plan import check_servable
from vortex_core.specs import ModelSpec

Fits = Callable[[Program, Knobs], bool]


def geometry_of(model: dict[str, Any]) -> Geometry | None:
    """A model's shapes, None where its description does not name them all."""
    try:
        return ModelSpec.model_validate(model).geometry()
    except ValidationError:
        return None


def room(config: CampaignConfig, geometry: Geometry | None) -> Room | None:
    """What a page's states may take, where every candidate has one page size."""
    most = None if config.screen is None else config.screen.most_state
    if most is None or geometry is None or "page_size" not in config.knobs:
        return None
    knobs = Knobs().with_(**config.knobs)
    per_token = most * kv_row_bytes(geometry, knobs.kv_bytes) / geometry.kv_heads
    return Room(knobs.page_size, geometry.head_dim, per_token * knobs.page_size)


def runs_as_it_is(flow: Flow) -> bool:
    """Whether a program can run under its knobs: one that reads a dense layer's mass cannot where no layer is dense."""
    try:
        check_dense_layers(flow.program, flow.knobs)
        check_reuse(flow.program, flow.knobs)
    except VortexError:
        return False
    return True


def fits(config: CampaignConfig, geometry: Geometry | None) -> Fits:
    """Whether a program's states are within the campaign's bound, and its target serves it."""
    most = None if config.screen is None else config.screen.most_state
    serves = config.objective.target == "sglang"

    def asked(program: Program, knobs: Knobs) -> bool:
        try:
            if serves:
                check_servable(program, knobs)
            if most is None or geometry is None:
                return True
            kept = state_bytes_per_token(program, knobs, geometry)
            return kept <= most * kv_row_bytes(geometry, knobs.kv_bytes)
        except VortexError:  # not served, or a size that is not whole in the model
            return False

    return asked

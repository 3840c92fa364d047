"""The dimensions of a model, asked of the cluster where this machine does not know them."""

from __future__ import annotations

import logging

import ray

from search.executors.shared import PACKAGES, ROOT
from vortex_core.errors import VortexError
from vortex_core.specs import ModelSpec


def describe(model: str, address: str | None) -> ModelSpec:
    """As `describe_model`, here or, for a campaign on a cluster, on one of its nodes: a driver needs neither weights
    nor a model's folder.

    Raises:
        VortexError: as `describe_model`, of the node that was asked last.
    """
    from vortex_core.engine.models.weights import describe_model

    try:
        return describe_model(model)
    except VortexError:
        if address is None or address.startswith("ray://"):
            raise
    if not ray.is_initialized():
        ours = [str(ROOT / name) for name in PACKAGES]
        ray.init(
            address=address,
            runtime_env={"py_modules": ours},
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    answer = ray.get(ray.remote(num_cpus=0)(_described).remote(model))
    if "error" in answer:
        raise VortexError.from_json(answer["error"])
    return ModelSpec.model_validate(answer["spec"])


def _described(model: str) -> dict[str, object]:
    from vortex_core.engine.models.weights import describe_model

    try:
        return {"spec": describe_model(model).model_dump(mode="json")}
    except VortexError as error:
        return {"error": error.to_json()}

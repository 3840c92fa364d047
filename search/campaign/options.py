"""What a campaign is asked to be: the command line's options laid over a campaign file, and which file that is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.campaign.replay import read_recording
from search.config import CAMPAIGNS, CampaignConfig
from search.executors.placement import resources_here
from search.log.run import recorded_campaign
from vortex_core.configs import Layer, Loaded

COMMAND_LINE = "command line"
_MUTABLE = ("limits", "cluster")  # what a replay may have otherwise


@dataclass(frozen=True)
class Options:
    """What the command line may say; None keeps what the campaign file says."""

    campaign: str | None = None
    model: str | None = None
    accuracy_model: str | None = None
    random_weights: bool | None = None
    proposer: str | None = None
    evaluation: str | None = None
    target: str | None = None
    run: str | None = None
    seed: int = 0
    max_candidates: int | None = None
    seconds: float | None = None
    dollars: float | None = None
    evaluations: int | None = None
    gpu_seconds: float | None = None
    tokens: int | None = None
    calls: int | None = None
    address: str | None = None
    device: str | None = None
    gpus: int | None = None
    tensor_parallel: int | None = None
    engines: int | None = None
    replay: str | None = None
    lessons: tuple[str, ...] = ()

    def layer(self) -> Layer:
        """The options as values laid over a campaign file's."""
        values = _given(
            model=self.model,
            accuracy_model=self.accuracy_model,
            random_weights=self.random_weights,
            proposer=self.proposer,
            evaluation=self.evaluation,
            objective=_given(target=self.target) or None,
            limits=_given(
                candidates=self.max_candidates,
                evaluations=self.evaluations,
                seconds=self.seconds,
                gpu_seconds=self.gpu_seconds,
                dollars=self.dollars,
                tokens=self.tokens,
                calls=self.calls,
            )
            or None,
            cluster=_given(
                address=self.address,
                device=self.device,
                gpus=self.gpus,
                tensor_parallel=self.tensor_parallel,
                engines=self.engines,
            )
            or None,
        )
        return Layer(COMMAND_LINE, values)


@dataclass(frozen=True)
class Resolved:
    """A campaign as it will run.

    Attributes:
        campaign: name or path of the file.
        why: why this one, where the command line does not say.
        loaded: the configuration, with the origin of every value.
    """

    campaign: str
    why: str
    loaded: Loaded[CampaignConfig]

    @property
    def config(self) -> CampaignConfig:
        """The configuration."""
        return self.loaded.value

    def run_name(self, options: Options) -> str:
        """The run's name; without `--run` the same options give the same one, so repeating them resumes."""
        if options.run:
            return options.run
        if options.replay:
            return f"{options.replay}-replay"
        config = self.config
        campaign = re.sub(r"\.ya?ml$", "", Path(self.campaign).name)
        parts = [campaign, Path(config.model).name, config.proposer, f"s{options.seed}"]
        return "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts)


def choose(options: Options, gpus: Callable[[], int]) -> tuple[str, str]:
    """The campaign to run and why: as the command line says, else the one named as the model, else by machine.

    Args:
        gpus: counts those of this machine; asked only where it matters.
    """
    if options.campaign is not None:
        return options.campaign, ""
    if options.model is not None and (name := options.model.lower()) in CAMPAIGNS.names():
        return name, "it is named as the model"
    if options.device == "cpu":
        return "default", "the device is the CPU"
    if options.device == "cuda" or options.gpus:
        return "gpu", "GPUs are asked for"
    if options.address:
        return "gpu", "it is to run on a cluster"
    if gpus():
        return "gpu", "this machine has a GPU"
    return "default", "this machine has no GPU"


def resolve(options: Options, gpus: Callable[[], int] | None = None) -> Resolved:
    """The campaign with the options laid over it.

    Raises:
        VortexError: `VS001` or `VS002` for a campaign or proposer that does not exist or validate.
    """
    if options.replay is not None:
        started = read_recording(options.replay).started
        layer = options.layer()
        recorded = recorded_campaign(started, {k: v for k, v in layer.values.items() if k in _MUTABLE})
        return Resolved(options.replay, "its recording is replayed", Loaded(recorded, (layer,)))
    name, why = choose(options, gpus or (lambda: resources_here().gpus))
    return Resolved(name, why, CAMPAIGNS.read(name, CampaignConfig, over=[options.layer()]))


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

"""Which campaign is run for a model on a machine, and where its values come from."""

from __future__ import annotations

from typing import Any

import pytest

from search.campaign.options import COMMAND_LINE, Options, choose, resolve
from search.campaign.session import plan_of
from search.commands.config_show import flatten, show
from search.config import CAMPAIGNS, CampaignConfig
from vortex_core.errors import VortexError


@pytest.mark.parametrize(
    ("given", "gpus", "campaign"),
    [
        ({}, 0, "default"),
        ({}, 1, "gpu"),
        ({"model": "qwen3-8b"}, 8, "gpu"),
        ({"model": "GLM-4.7-Flash"}, 1, "glm-4.7-flash"),
        ({"model": "glm-4.7-flash"}, 0, "glm-4.7-flash"),
        ({"model": "glm-4.7-flash", "campaign": "quick"}, 1, "quick"),
        ({"device": "cpu"}, 8, "default"),
        ({"device": "cuda"}, 0, "gpu"),
        ({"gpus": 2}, 0, "gpu"),
        ({"address": "auto"}, 0, "gpu"),
    ],
)
def test_the_right_file_is_picked(given: dict[str, Any], gpus: int, campaign: str):
    name, why = choose(Options(**given), lambda: gpus)
    assert name == campaign
    assert bool(why) == ("campaign" not in given)


def test_options_reach_every_place_they_name():
    given = Options(
        campaign="default", model="m/x", accuracy_model="a", random_weights=True, proposer="grammar",
        evaluation="quick", target="sglang", max_candidates=3, seconds=60, dollars=1.5, address="auto",
        device="cuda", gpus=4, tensor_parallel=2, engines=1,
    )  # fmt: skip
    found = resolve(given)
    config = found.config
    assert (config.model, config.accuracy_model, config.random_weights) == ("m/x", "a", True)
    assert (config.objective.target, config.evaluation) == ("sglang", "quick")
    assert (config.limits.candidates, config.limits.seconds, config.limits.dollars) == (3, 60, 1.5)
    cluster = config.cluster
    assert (cluster.address, cluster.device, cluster.gpus) == ("auto", "cuda", 4)
    assert (cluster.tensor_parallel, cluster.engines) == (2, 1)
    assert found.loaded.source_of("cluster.gpus") == COMMAND_LINE
    assert found.loaded.source_of("limits.finals_seconds").endswith("default.yaml")
    assert plan_of(config).target == "sglang"


def test_the_declared_target_is_part_of_what_results_mean():
    plain, served = (resolve(Options(campaign="quick", target=t)).config for t in (None, "sglang"))
    assert plan_of(plain).digest != plan_of(served).digest


def test_random_weights_answer_nothing():
    with pytest.raises(VortexError, match="accuracy_model"):
        resolve(Options(campaign="default", random_weights=True))


def test_a_run_is_named_after_the_whole_campaign_and_model():
    options = Options(model="glm-4.7-flash")
    assert resolve(options, lambda: 1).run_name(options) == "glm-4.7-flash-glm-4.7-flash-grammar-s0"
    assert resolve(Options(campaign="quick")).run_name(Options(run="mine")) == "mine"


def test_campaigns_for_machines_without_the_weights_say_whose_answers_count():
    for name in ("glm-4.7-flash", "minimax-m2.7"):
        config = CAMPAIGNS.load(name, CampaignConfig)
        assert config.model == name
        assert config.random_weights and config.accuracy_model
        assert config.cluster.device == "cuda"
    assert CAMPAIGNS.load("minimax-m2.7", CampaignConfig).cluster.tensor_parallel == 4
    assert CAMPAIGNS.load("full", CampaignConfig).limits.seconds == 3 * 24 * 3600


def test_every_value_is_shown_with_its_origin():
    found = show(Options(campaign="gpu", max_candidates=7))
    values = {v.key: v for v in found.values}
    config = resolve(Options(campaign="gpu", max_candidates=7)).config
    shown = {key for key in values if not key.startswith("plan.")}
    assert shown == {key for key, _ in flatten(config.model_dump(mode="json"))}
    assert (values["limits.candidates"].value, values["limits.candidates"].source) == (7, COMMAND_LINE)
    assert values["objective.speed"].source == "campaigns/gpu-answers.yaml"
    assert values["objective.margin"].source == "campaigns/answers.yaml"
    assert values["cluster.retries"].source == "default"
    assert values["plan.reads"].source == "evaluation/gpu.yaml"


def test_what_is_missing_here_is_said_without_starting_anything(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = show(Options(campaign="gpu", device="cuda", model="qwen3-8b"))
    codes = [error.code for error in found.missing]
    assert codes[0] == "VS040"
    assert len(codes) == 1 or codes[1] == "VM004"

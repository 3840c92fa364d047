"""What a campaign leaves out on a machine that has time for little of it: something is to be searched, answered and
stated on fresh items, however slow it is."""

from __future__ import annotations

from evaluators.plan import EvaluationPlan
from search.config import CampaignConfig

LITTLE = 0.3
"""Share of a plan's items below which more is left out than items."""
_LAYERS, _FULL_LAYERS, _FULL = 2, 4, 4


def within_reach(config: CampaignConfig, share: float) -> CampaignConfig:
    """The campaign for a machine that is asked a share of its plan's items: the same, from `LITTLE` on.

    Below, the models beside the first go: reading one and its prompts takes longer than a program's answers. Programs
    are screened in fewer layers, by one worker, as every process that starts takes seconds of computing. The best
    answers, whether or not it keeps the screen's gates: among few programs there may be none that does. In the finals
    one program meets one of the library. The controls go: with one answer each nothing is compared, and the one program
    that answers might be theirs. Where the time is used up before a program has answered, it is overrun.
    """
    if share >= LITTLE or config.screen is None:
        return config
    screen = config.screen.model_copy(
        update={
            "models": (),
            "gates": (),
            "layers": min(_LAYERS, config.screen.layers),
            "full_layers": min(_FULL_LAYERS, config.screen.full_layers),
            "full": min(_FULL, config.screen.full),
        }
    )
    finals = config.finals.model_copy(
        update={
            "elites": min(1, config.finals.elites),
            "peers": 0,
            "anyway": True,
            "matched": False,
            "second": None,
        }
    )
    cluster = config.cluster.model_copy(update={"cpu_tasks": 1, "lookahead": 1})
    arms = tuple(arm for arm in config.arms if not arm.control)
    return config.model_copy(update={"arms": arms, "screen": screen, "finals": finals, "cluster": cluster})


def left_out(config: CampaignConfig, plan: EvaluationPlan, share: float) -> str:
    """What a slow machine is not asked, in words; empty where it is asked everything."""
    if share == 1.0:
        return ""
    before, after = (sum(task.items for task in p.accuracy.tasks) for p in (plan, plan.with_items(share)))
    asked = f"{after} items are" if after > 1 else "1 item is"
    words = (
        f"{asked} asked instead of {before} (plan {plan.name}): on this machine as it is now "
        f"{config.limits.seconds:g} s leave no time for all"
    )
    less = within_reach(config, share)
    if less != config and config.screen is not None and less.screen is not None:
        words += (
            f"; programs are screened in {less.screen.layers} layers of one model, the best answers whatever it "
            "has there, and the controls, the library at equal cost and the second model are left out"
        )
    return words

"""What a language model reads in a campaign, from before dense has answered to its end: asserted on rendered text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import evaluators.errors  # noqa: F401 - declares its codes
from agents.base import CHANGES, ProposalRequest, Standing
from agents.directions import direction
from agents.ensemble import EnsembleProposer
from agents.prices import Price, estimate
from agents.prompting import metrics, observations, standings, system_prompt, user_prompt
from evaluators.plan import load_plan
from search.campaign.conditions import language, setting
from search.campaign.lessons import Lessons
from search.campaign.options import Options
from search.commands.dry_run import estimate_costs
from search.log import events as ev
from search.log.state import CampaignState
from search.log.store import Record
from tests.null.agents.stub_campaign import Reader, by_kind, play, settings
from vortex_core.errors import declared
from vortex_core.specs import load_model

KINDS = ("seed", "crossover", "repair", *CHANGES)
SYSTEM = system_prompt(language())
MUTE = (12, 13)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reader, CampaignState, Path]:
    folder = tmp_path_factory.mktemp("stub")
    return *play(folder, mute=MUTE), folder


def test_the_first_prompt_says_where_accuracy_and_speed_are_asked(
    played: tuple[Reader, CampaignState, Path],
) -> None:
    text = played[0].asked[0].text
    assert "Dense attention has not answered yet" in text, "the stub is to ask before dense answers"
    assert "needle_single at 1024 tokens x8, needle_multikey at 1024 tokens x8; 16 items" in text
    assert "so one is 0.0625 of accuracy" in text
    assert "modelled_speedup_h200: a decode step at the contexts of the answers (1024 tokens)" in text
    assert "a list holds 8 of 64 pages of 16; 3 are always kept, so the program chooses 5" in text
    assert '"budget": "128"' in text, "knobs that it cannot change"


def test_later_prompts_say_what_dense_answers_and_what_chance_does(
    played: tuple[Reader, CampaignState, Path],
) -> None:
    text = played[0].asked[-1].text
    assert "Dense attention answers 88% of the items right" in text
    assert "differences inside that interval are chance" in text
    assert "1024 tokens x 64 sequences" in text


def test_every_figure_and_verdict_in_a_prompt_is_defined(played: tuple[Reader, CampaignState, Path]) -> None:
    named: set[str] = set()
    for asked in played[0].asked:
        named |= set(re.findall(r"^(\w+) = ", asked.text, re.M))
        rows = re.findall(r"^  c\d{3} .*?(?:gates \w+|VV\d+\)): ([^(]*)", asked.text, re.M)
        named |= {
            name for row in rows for name in re.findall(r"(?:^|, )([a-z_0-9]+) -?[0-9.]+(?:e[-+]\d+)?\b", row)
        }
    assert {
        "screen_own_output",
        "screen_own_beyond",
        "screen_beyond",
        "accuracy_delta",
        "state_share",
        "density",
    } <= named
    for name in named:
        stem = name.replace("modelled_speedup_h200", "modelled_speedup_GPU")
        assert f"`{stem}`" in SYSTEM, f"{name} is shown and not defined"
    for word in ("`proven`", "`unclear`", "`failed`", "screened only", "hindsight", "95% interval"):
        assert word in SYSTEM
    assert "about one program in 8" in played[0].asked[0].text


def test_prompts_say_that_the_screen_does_not_rank_the_best(
    played: tuple[Reader, CampaignState, Path],
) -> None:
    assert "does not rank the best" in SYSTEM
    text = played[0].asked[-1].text
    (row,) = re.findall(r"What the screen said .*", text)
    assert len(re.findall(r"c\d{3} [0-9.]+: [-+][0-9.]+ of 16", row)) >= 3


def test_lessons_are_told_once_and_rest_on_nothing_mixed(played: tuple[Reader, CampaignState, Path]) -> None:
    reader, state, _ = played
    found = Lessons(reader.files, settings()).now(state)
    assert len(found) >= 3
    assert len({lesson.evidence for lesson in found}) == len(found), "the same children are told twice"
    (wide,) = [c for c in state.candidates.values() if c.knobs["budget"] == "512"]
    moved = {c.label for c in state.found if c.parents and c.parents[0] == wide.key}
    assert moved, "nobody came from the program with another budget"
    assert not moved & {label for lesson in found for label in lesson.evidence}
    assert not re.search(r"with(out)? \d+ states", played[0].asked[-1].text)


def test_a_lineage_says_where_the_budget_changed_too(played: tuple[Reader, CampaignState, Path]) -> None:
    texts = [asked.text for asked in played[0].asked]
    assert any("program and budget 512 -> 128: two changes at once, not to be told apart" in t for t in texts)


def test_a_parent_of_another_operating_point_is_said_to_be_one(
    played: tuple[Reader, CampaignState, Path],
) -> None:
    wide = [a for a in played[0].asked if any(p.flow.knobs.budget == "512" for p in a.request.parents)]
    assert wide
    for asked in played[0].asked:
        said = "It was measured with budget 512 (not 128)" in asked.text
        assert said == (asked in wide)
    assert "attention-" not in wide[0].text, "names of files say nothing"


def test_candidates_that_agree_in_every_figure_are_named_so() -> None:
    figures = {"accuracy_delta": {"value": -0.1, "n": 16}, "modelled_speedup_h200": {"value": 2.0}}
    rows = [
        Standing(name, "best", "unclear", metrics=figures, knobs={"budget": "128"})
        for name in ("c1 a", "c2 b")
    ]
    text = standings(rows, {"budget": "128"})
    assert text.count("accuracy_delta -0.1 of 16") == 1
    assert "c2 b unclear: every figure as c1 a" in text
    assert "budget" not in text, "what the campaign gives everybody is not repeated"


def test_one_density_is_shown() -> None:
    found = {name: {"value": 0.2} for name in ("density", "accuracy_density", "screen_density", "recall")}
    text = metrics(found, "raise recall")
    assert text.splitlines() == ["recall = 0.2", "density = 0.2"]


def test_costs_of_bytes_launches_and_operations_are_told(played: tuple[Reader, CampaignState, Path]) -> None:
    assert "1 / (2 S)" in SYSTEM
    assert "Each operator\n  across pages" in SYSTEM
    assert "tensor cores" in SYSTEM
    for asked in (played[0].asked[0], played[0].asked[-1]):
        assert "takes 3 us for each launch" in asked.text
        assert "0.23 us for each megabyte read" in asked.text


def test_a_parent_that_was_only_screened_shows_where_its_time_goes(
    played: tuple[Reader, CampaignState, Path],
) -> None:
    texts = (by_kind(played[0].asked, "simplify", at) for at in range(10, len(played[0].asked)))
    # A long line is cut: of many states not all are named.
    text = next(t for t in texts if not re.search(r"^costs.state_share by state: .*\.\.\.$", t, re.M))
    assert re.search(r"^costs.bottleneck: (launches|kv|states|weights|compute|other)$", text, re.M)
    (step,) = re.findall(r"^costs.step: (.*)$", text, re.M)
    assert 97 <= sum(int(share) for share in re.findall(r"(\d+)%", step)) <= 103
    assert re.search(r"^costs.launches of a layer: update .* us, score .* us, .*merge 3 us$", text, re.M)
    (kept,) = re.findall(r"^costs.state_share by state: (.*)$", text, re.M)
    (whole,) = re.findall(r"^state_share = ([0-9.]+)", text, re.M)
    shares = [float(state.split()[-1]) for state in kept.split("; ")]
    assert sum(shares) == pytest.approx(float(whole), rel=0.02)


def test_every_code_that_stops_a_candidate_is_explained() -> None:
    codes = [c for c in declared().values() if c.fault == "candidate" and c.home == "evaluators"]
    assert len(codes) >= 8
    for code in codes:
        assert f"{code.code} {code.title}" in SYSTEM


def test_stumbles_of_earlier_authors_are_ruled_out_in_words() -> None:
    for words in (
        "`ops.param` (learned values come with no program here",
        '"S-1"',
        "D x D projection of every token",
    ):
        assert words in SYSTEM


@pytest.mark.parametrize("kind", ["diff", "tune"])
def test_answers_of_another_form_override_the_instructions(
    played: tuple[Reader, CampaignState, Path], kind: str
) -> None:
    text = by_kind(played[0].asked, kind, 20)  # type: ignore[arg-type]
    assert "The form of this answer replaces the one under `# Answer` of the instructions" in text
    assert "Unless the request asks for edits or knobs alone" in SYSTEM
    assert text.rindex("The form of this answer") > text.rindex("DATA>>>"), (
        "said last, behind all that is read"
    )


def test_maps_come_last_and_crowd_nothing_out() -> None:
    info = {
        "recall": {"by_layer": {str(n): 0.5 for n in range(900)}, "recall_by_head": ["00ff" * 20] * 96},
        "accuracy": {"lost_items": [{"task": "needle", "depth": 0.4, "said": "7"}] * 3, "note": "x" * 250},
    }
    lines = observations(info).splitlines()
    assert lines[0] == "accuracy.lost_items: " + "; ".join(["task needle, depth 0.4, said 7"] * 3)
    assert lines[1].startswith("accuracy.note")
    assert lines[-1] == "[... 2 more ...]"
    small = observations({"screen": {"beyond_by_layer": {"3": 0.8, "19": 0.7}, "worst": 1}})
    assert small.splitlines() == ["screen.worst: 1", "screen.beyond_by_layer: 3: 0.8, 19: 0.7"]


def test_no_two_asks_are_the_same_text(played: tuple[Reader, CampaignState, Path]) -> None:
    texts = [asked.text for asked in played[0].asked]
    assert len(set(texts)) == len(texts)


def test_an_ask_after_a_timeout_says_so_and_what_is_under_way(
    played: tuple[Reader, CampaignState, Path],
) -> None:
    after = played[0].asked[MUTE[-1]]
    assert "brought no program" in after.text
    assert "VA015" in after.text
    under = [a.text for a in played[0].asked if "Under way now" in a.text]
    assert len(under) > len(played[0].asked) // 2
    assert any(re.search(r"^- c\d{3} \w+: \w+", t[t.index("Under way now") :], re.M) for t in under)


def test_knobs_alone_are_not_asked_for_where_the_campaign_gives_them(
    played: tuple[Reader, CampaignState, Path],
) -> None:
    kinds = {asked.request.kind for asked in played[0].asked}
    assert {"mutate", "diff", "invert", "simplify"} <= kinds
    assert "tune" not in kinds
    reader = Reader()
    team = EnsembleProposer([reader])
    given = {team.change("reader", ()) for _ in range(1)}
    assert given, "without given knobs every kind may be chosen"
    for n in range(5):
        team.tell("reader", 1.0 if n == 2 else 0.0, None, CHANGES[n])
    assert team.change("reader") == "tune"
    assert team.change("reader", {"budget": "128"}) != "tune"


def test_no_direction_is_about_knobs_that_the_campaign_gives(
    played: tuple[Reader, CampaignState, Path],
) -> None:
    said = [
        re.search(r"^(?:Suggested move|Direction for this one): (.*)$", a.text, re.M) for a in played[0].asked
    ]
    directions = {found.group(1) for found in said if found}
    assert len(directions) > 5
    assert not any("budget" in text for text in directions)
    assert any("budget" in direction("mutate", seed) for seed in range(20))


def test_a_control_is_not_told_what_others_answered(played: tuple[Reader, CampaignState, Path]) -> None:
    _, state, _ = played
    library = {c.label for c in state.candidates.values() if c.reference}
    (everybody,) = re.findall(r"What the screen said .*", setting(state, settings()))
    (alone,) = re.findall(r"What the screen said .*", setting(state, settings(), "control"))
    assert not set(re.findall(r"c\d{3}", everybody)) <= library
    assert set(re.findall(r"c\d{3}", alone)) <= library


def test_a_model_that_reads_less_is_told_the_contexts_that_it_is_asked(
    played: tuple[Reader, CampaignState, Path],
) -> None:
    state = CampaignState()
    plan = load_plan("gpu").model_dump(mode="json")
    state.apply(Record(1, 0.0, ev.CampaignStarted("r", {}, plan, {}, {})))
    longest = max(task["context"] for task in plan["accuracy"]["tasks"])
    short = load_model("smollm2-135m").model_dump(mode="json")
    assert f"at {longest} tokens" in setting(state, settings(), None, short | {"max_context": 4 * longest})
    assert f"at {longest} tokens" not in setting(state, settings(), None, short)
    assert short["max_context"] < longest


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_bounded(played: tuple[Reader, CampaignState, Path], kind: str) -> None:
    assert len(SYSTEM) < 26_000, "about 6,500 tokens, the same in every call and cached"
    text = by_kind(played[0].asked, kind, 30)  # type: ignore[arg-type]
    assert len(text) < 22_000
    assert "{{" not in text
    assert not re.search(r"\S<<<DATA", text), "a block begins a line"


def test_a_repair_shows_program_and_error_first(played: tuple[Reader, CampaignState, Path]) -> None:
    text = by_kind(played[0].asked, "repair", 30)
    assert text.index("VF012") < text.index("How it is measured")
    assert "Where the search stands" not in text


def test_an_ask_without_a_number_carries_none() -> None:
    assert "of this campaign.)" not in user_prompt(ProposalRequest(kind="seed", seed=0))
    assert user_prompt(ProposalRequest(kind="seed", seed=0, number=7)).endswith("(Ask 7 of this campaign.)\n")


def test_a_dry_run_expects_asks_as_long_as_they_become(played: tuple[Reader, CampaignState, Path]) -> None:
    address = "http://127.0.0.1:9/v1"
    found = estimate_costs(Options(campaign="default", proposer=f"openai:m@{address}"))
    (one,) = found["models"]
    late = [
        estimate(Price("m", address), (SYSTEM, asked.text), 1_500).tokens for asked in played[0].asked[30:]
    ]
    assert 0.8 < one["tokens"] / (sum(late) / len(late)) < 1.2

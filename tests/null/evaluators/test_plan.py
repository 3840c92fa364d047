from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluators.plan import EvaluationPlan, list_plans, load_plan
from evaluators.stages.decode import DecodeSettings
from evaluators.stages.modelled import ModelledSettings
from evaluators.stages.recall import RecallSettings
from evaluators.stages.registry import STAGES
from evaluators.tasks.items import FRESH_SEEDS, build_items, check_context
from vortex_core.errors import VortexError
from vortex_core.specs import load_model


def default() -> dict[str, Any]:
    return load_plan("default").model_dump(mode="json")


def test_shipped_plans_load_and_suit_the_default_model() -> None:
    assert {"default", "quick"} <= set(list_plans())
    for name in list_plans():
        plan = load_plan(name)
        assert plan.name == name
        model = load_model("smollm2-135m")
        check_context(plan.for_model(model), model)


def test_deadlines_can_name_every_stage() -> None:
    plan = EvaluationPlan.model_validate(default() | {"deadlines": dict.fromkeys(STAGES.names(), 9)})
    assert set(plan.deadlines) == set(STAGES.names())


def test_a_stage_left_out_needs_no_section() -> None:
    data = default() | {"stages": ["static", "compile", "accuracy"]}
    for name in ("parity", "recall", "decode", "modelled"):
        del data[name]
    plan = EvaluationPlan.model_validate(data)
    assert set(plan.sections) == {"compile"}  # whose settings all have defaults
    with pytest.raises(VortexError, match="no section 'recall'"):
        plan.section("recall", RecallSettings)


def test_a_section_is_the_stages_own_record() -> None:
    plan = load_plan("default")
    assert plan.section("recall", RecallSettings).steps == default()["recall"]["steps"]
    assert EvaluationPlan.model_validate(plan.model_dump(mode="json")) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_a_plan_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(default() | {"name": "mine"}))
    assert load_plan(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"extra": 1}, "extra: neither a key of plans nor the name of a stage"),
        ({"recal": default()["recall"]}, r"recal: .*did you mean recall"),
        ({"static": {"x": 1}}, "static: this stage has no settings"),
        ({"stages": ["static", "parrity"]}, "did you mean parity"),
        ({"parity": {}}, r"parity.pages: .*; parity.seeds: "),
        ({"parity": default()["parity"] | {"sedes": [1]}}, "parity.sedes"),
        ({"stages": ["serving"]}, r"serving.model: .*the plan has no such section"),
        ({"deadlines": {"accurracy": 60}}, "deadlines of accurracy: stages are static, "),
        ({"deadlines": {"accuracy": 0}}, "deadlines.accuracy"),
        ({"accuracy": default()["accuracy"] | {"batch": 0}}, "accuracy.batch"),
        ({"accuracy": default()["accuracy"] | {"tasks": []}}, "accuracy.tasks"),
        (
            {"accuracy": default()["accuracy"] | {"tasks": 2 * default()["accuracy"]["tasks"][:1]}},
            "tasks repeat",
        ),
        ({"recall": default()["recall"] | {"needle_items": 1000}}, "needle_items"),
        ({"recall": default()["recall"] | {"steps": 1000}}, "steps"),
        ({"recall": default()["recall"] | {"needle_items": 0, "perplexity_items": 0}}, "at least one"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(default() | change))
    with pytest.raises(VortexError, match=said) as caught:
        load_plan(str(path))
    assert caught.value.code == "VV008"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"contexts": [1024, 1024]}, "list each once"),
        ({"contexts": []}, "list each once"),
        ({"contexts": [1024, 4096], "weights": [1]}, "1 weights of 2 contexts"),
        ({"contexts": "asked", "weights": [1]}, "weighted by items"),
        ({"contexts": "everywhere"}, "contexts"),
    ],
)
def test_operating_points_are_declared(section: dict[str, Any], said: str) -> None:
    decode = {"steps": 1, "rounds": 1} | section
    with pytest.raises(ValueError, match=said):
        EvaluationPlan.model_validate(default() | {"decode": decode})


def test_asked_contexts_are_weighted_by_their_items() -> None:
    plan = load_plan("default")
    settings = plan.section("modelled", ModelledSettings)
    assert settings.mix(plan) == {1024: 32 / 39, 2048: 6 / 39, 4096: 1 / 39}
    points = settings.points(plan, tokens=100_000, new=1)
    assert [p.batch for p in points] == [64, 40, 16]
    assert [p.batch for p in settings.points(plan, tokens=3000, new=1)] == [2, 1, 0]


def test_a_plan_shrinks_to_what_a_model_reads() -> None:
    data = default() | {"reads": 16384}
    data["decode"] = data["decode"] | {"contexts": [1024, 4096]}
    plan = EvaluationPlan.model_validate(data)
    assert plan.for_model(load_model("qwen3-8b")) is plan
    small = plan.for_model(load_model("smollm2-135m"))
    assert [task.context for task in small.accuracy.tasks] == [512, 512, 1024, 2048]
    assert small.perplexity.context == 640
    assert small.section("decode", DecodeSettings).contexts == (512, 2048)
    assert small.for_model(load_model("smollm2-135m")) is small
    assert small.digest != plan.digest


def test_unknown_plans_get_near_names() -> None:
    with pytest.raises(VortexError) as caught:
        load_plan("defalt")
    assert caught.value.code == "VV001"
    assert "default" in caught.value.remedy


def test_files_that_are_no_yaml_or_no_text(tmp_path: Path) -> None:
    for content in (b"a: [", b"\xff\xfe\x00"):
        (tmp_path / "x.yaml").write_bytes(content)
        with pytest.raises(VortexError) as caught:
            load_plan(str(tmp_path / "x.yaml"))
        assert caught.value.code == "VV008"


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (
            {"task": "needle_single", "context": 512, "distractors": 2},
            "task needle_single: distractors: Extra",
        ),
        ({"task": "needle_multikey", "context": 512}, "task needle_multikey: distractors: Field required"),
        ({"task": "needle_single"}, "task needle_single: context: Field required"),
        ({"task": "needle_singel", "context": 512}, "did you mean needle_single"),
        ({"task": "held_text", "context": 512, "continuation": 4}, "held_text has no answers"),
    ],
)
def test_a_tasks_keys_are_its_own(task: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EvaluationPlan.model_validate(
            default() | {"accuracy": default()["accuracy"] | {"tasks": [task | {"items": 1}]}}
        )


def test_one_task_may_be_asked_twice_under_two_names() -> None:
    asked = {"task": "needle_multikey", "context": 512, "items": 1}
    tasks = [asked | {"distractors": 1}, asked | {"distractors": 4, "name": "crowded"}]
    plan = EvaluationPlan.model_validate(default() | {"accuracy": default()["accuracy"] | {"tasks": tasks}})
    assert [task.key for task in plan.accuracy.tasks] == ["needle_multikey@512", "crowded@512"]


def test_the_digest_follows_every_setting() -> None:
    plan = load_plan("default")
    assert plan.digest == load_plan("default").digest
    other = EvaluationPlan.model_validate(default() | {"seed": 1})
    assert other.digest != plan.digest


def test_a_plan_longer_than_the_model_is_refused() -> None:
    data = default()
    data["decode"]["contexts"] = [9000]
    with pytest.raises(VortexError) as caught:
        check_context(EvaluationPlan.model_validate(data), load_model("smollm2-135m"))
    assert caught.value.code == "VV003"
    data = default()
    data["modelled"]["contexts"] = [9000]
    with pytest.raises(VortexError):
        check_context(EvaluationPlan.model_validate(data), load_model("smollm2-135m"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("task_tests", Path(__file__).with_name("test_tasks.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TOKENIZER


@pytest.fixture(scope="module")
def plan() -> EvaluationPlan:
    return load_plan("quick")


def test_all_items_are_asked_once_the_gate_first(tokenizer: Any, plan: EvaluationPlan) -> None:
    items = build_items(plan, tokenizer, 0)
    order = items.in_order(plan.accuracy.gate_items)
    everything = {(key, i) for key, found in items.needles.items() for i in range(len(found))}
    assert len(order) == len(set(order)) and set(order) == everything
    gate = plan.accuracy.gate_items * len(items.needles)
    assert all(i < plan.accuracy.gate_items for _, i in order[:gate])
    batches = items.batches(order, 3)
    assert [place for batch in batches for place in sorted(batch)] != []
    assert sorted(place for batch in batches for place in batch) == sorted(order)
    assert max(map(len, batches)) == 3


def test_fresh_seeds_get_their_share(tokenizer: Any, plan: EvaluationPlan) -> None:
    search, fresh = (build_items(plan, tokenizer, seed) for seed in (3, FRESH_SEEDS + 3))
    for task in plan.accuracy.tasks:
        assert len(search.needles[task.key]) == task.items
        assert len(fresh.needles[task.key]) == -(-task.items // 2)
    assert search.tokens > fresh.tokens
    assert not {i.answer for v in search.needles.values() for i in v} & {
        i.answer for v in fresh.needles.values() for i in v
    }

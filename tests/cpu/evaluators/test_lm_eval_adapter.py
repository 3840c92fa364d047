"""lm-eval on a tiny random model, offline, from a local JSONL file."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from evaluators.tasks.lm_eval_adapter import EngineLM
from vortex_core import library
from vortex_core.engine import Engine

lm_eval = pytest.importorskip("lm_eval")


class Instance:
    """What the adapter reads of lm-eval's requests."""

    def __init__(self, *args: Any) -> None:
        self.args = args


@pytest.fixture
def model(engine: Engine) -> EngineLM:
    engine.load_flow(None)
    return EngineLM(engine, batch=3)


def reference_logprobs(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    """Natural-log probability of every next token by a plain forward pass, `[len(ids) - 1]`."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0].float()
    return torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


def test_loglikelihoods_are_those_of_the_model(model: EngineLM, plain_model: LlamaForCausalLM) -> None:
    pairs = [("The sky", " is blue"), ("", "ab"), ("One two three", " four"), ("x", "yz"), ("q ", "r")]
    results = model.loglikelihood([Instance(*pair) for pair in pairs], disable_tqdm=True)
    for (context, target), (logprob, _) in zip(pairs, results, strict=True):
        ids = ([257] if not context else []) + model.tok_encode(context + target)
        expected = reference_logprobs(plain_model, ids)[-len(ids) + max(1, len(context.rstrip())) :].sum()
        assert logprob == pytest.approx(float(expected), abs=1e-3)


def test_greedy_flags_follow_the_greedy_continuation(model: EngineLM, engine: Engine) -> None:
    prompt = engine.prefill(model.tok_encode("Hello there"))
    best = engine.decode([prompt], max_new_tokens=3).tokens[0]
    engine.release(prompt)
    context = model.tok_encode("Hello there")
    worst = [*best[:2], (best[2] + 1) % 256]
    results = model._loglikelihood_tokens([(None, context, best), (None, context, worst)])
    assert [flag for _, flag in results] == [True, False]


def test_rolling_likelihood_covers_every_token_once(model: EngineLM, plain_model: LlamaForCausalLM) -> None:
    (found,) = model.loglikelihood_rolling([Instance("abcdef")])
    expected = reference_logprobs(plain_model, [257, *b"abcdef"]).sum()
    assert found == pytest.approx(float(expected), abs=1e-3)


def test_generations_stop_at_their_strings(model: EngineLM, engine: Engine) -> None:
    (whole,) = model.generate_until([Instance("Once", {"until": [], "max_gen_toks": 12})])
    assert len(whole) >= 3
    stop = whole[2:4]
    cut = model.generate_until(
        [Instance("Once", {"until": [stop], "max_gen_toks": 12}), Instance("Once", {"max_gen_toks": 5})]
    )
    assert cut[0] == whole[: whole.find(stop)]
    assert whole.startswith(cut[1])
    single = model.generate_until([Instance("Once", {"until": whole[1], "max_gen_toks": 12})])
    assert single == [whole[: whole.find(whole[1])]]


def test_sampling_is_seeded_and_unknown_arguments_are_refused(engine: Engine) -> None:
    engine.load_flow(None)
    request = Instance("Once", {"do_sample": True, "temperature": 1.5, "max_gen_toks": 8})
    one, other = (EngineLM(engine, seed=s).generate_until([request]) for s in (0, 0))
    assert one == other
    assert EngineLM(engine, seed=7).generate_until([request]) != one
    with pytest.raises(ValueError, match="num_beams"):
        EngineLM(engine).generate_until([Instance("x", {"num_beams": 3})])


def test_the_loaded_flow_is_what_is_measured(model: EngineLM, engine: Engine) -> None:
    long = "a quick brown fox " * 20
    ((dense, _),) = model.loglikelihood([Instance(long, "jumps")], disable_tqdm=True)
    sparse = library.load("streaming").with_knobs(budget="48", keep_last=1)
    engine.load_flow(sparse.program, sparse.knobs)
    ((other, _),) = model.loglikelihood([Instance(long, "jumps")], disable_tqdm=True)
    assert abs(other - dense) > 0.01
    engine.load_flow(None)
    ((again, _),) = model.loglikelihood([Instance(long, "jumps")], disable_tqdm=True)
    assert again == pytest.approx(dense, abs=1e-4)


def test_a_local_task_runs_offline(model: EngineLM, tmp_path: Path) -> None:
    rows = [
        {"question": "2+2=", "choices": ["4", "5"], "answer": 0},
        {"question": "3+3=", "choices": ["7", "6"], "answer": 1},
        {"question": "1+1=", "choices": ["2", "3"], "answer": 0},
    ]
    data = tmp_path / "sums.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "sums.yaml").write_text(
        json.dumps(  # JSON is YAML
            {
                "task": "sums",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
                "test_split": "test",
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}}",
                "doc_to_choice": "{{choices}}",
                "doc_to_target": "{{answer}}",
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            }
        )
    )
    from lm_eval.tasks import TaskManager

    results = lm_eval.simple_evaluate(
        model=model,
        tasks=["sums"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    right = 0
    for row in rows:
        scores = model.loglikelihood(
            [Instance(row["question"], f" {choice}") for choice in row["choices"]], disable_tqdm=True
        )
        likeliest = max(range(2), key=lambda i: scores[i][0])
        right += likeliest == row["answer"]
    assert math.isclose(results["results"]["sums"]["acc,none"], right / len(rows))


@pytest.mark.slow
def test_lm_evals_command_knows_vortex_by_name(tmp_path: Path) -> None:
    """`lm_eval --model vortex`, as its module runs it, over a local task with a flow of the library."""
    pairs = [(f"k{n} v{n} n1 n2 k{n + 1} v{n + 1} n3 n4 k{n}", f"v{n}") for n in range(6)]
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("\n".join(json.dumps({"text": text, "value": value}) for text, value in pairs))
    task = {
        "task": "told", "dataset_path": "json", "test_split": "test", "output_type": "generate_until",
        "dataset_kwargs": {"data_files": {"test": str(rows)}, "cache_dir": str(tmp_path / "cache")},
        "doc_to_text": "{{text}}", "doc_to_target": "{{value}}",
        "generation_kwargs": {"until": [" "], "max_gen_toks": 1},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "told.yaml").write_text(json.dumps(task))
    command = [
        sys.executable, "-m", "evaluators.lm_eval_plugin", "--model", "vortex",
        "--model_args", "model=retrieval-mla,flow=quest,budget=64,max_tokens=4096,threads=1",
        "--tasks", "told", "--include_path", str(tmp_path), "--batch_size", "2",
        "--output_path", str(tmp_path / "out"),
    ]  # fmt: skip
    without = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # nobody names a device: a CPU is found
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=without)
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(found.read_text())
    # Texts of ten tokens, far shorter than it was trained on; guessing is right once in 160 times.
    assert results["results"]["told"]["exact_match,none"] >= 0.5
    assert results["config"]["flow"] == "quest" and results["config"]["ir_hash"] != "dense"


@pytest.mark.parametrize(
    ("given", "added"),
    [
        (["run", "--model", "vortex"], ["--device", "auto"]),
        (["run", "-M", "vortex"], ["--device", "auto"]),
        (["run", "--model=vortex", "--device=cpu"], []),
        (["run", "--model", "vortex", "-C", "file.yaml"], []),
        (["ls", "tasks"], []),
    ],
)
def test_where_nobody_names_a_device_there_need_be_no_gpu(
    given: list[str], added: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval itself says `cuda:0` then."""
    import lm_eval.__main__ as command

    from evaluators.lm_eval_plugin import main

    seen: list[str] = []
    monkeypatch.setattr(sys, "argv", ["lm-eval", *given])
    monkeypatch.setattr(command, "cli_evaluate", lambda: seen.extend(sys.argv[1:]))
    main()
    assert seen == given + added

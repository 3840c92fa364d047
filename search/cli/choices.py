"""Options that several commands take, each described once."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Devices = Literal["auto", "cpu", "cuda"]
Targets = Literal["embedded", "sglang"]

MOST = 10**8  # of tokens, sequences, rounds: more is a slip of the hand

Campaign = Annotated[
    str | None,
    typer.Option(
        help="Campaign: a name in configs/campaigns, or a .yaml file. By default the one named as the model, "
        "else gpu on a machine with a GPU, else default."
    ),
]
Model = Annotated[str | None, typer.Option(help="Model by name, directory or hub id.")]
AccuracyModel = Annotated[
    str | None, typer.Option(help="Model whose answers are scored, where --model has no weights here.")
]
RandomWeights = Annotated[
    bool | None, typer.Option("--random-weights", help="True shape, random numbers: only speed is measured.")
]
Proposer = Annotated[
    str | None,
    typer.Option(help="Who writes programs: grammar, anthropic:MODEL, openai:MODEL[@http://host/v1]."),
]
Plan = Annotated[
    str | None, typer.Option(help="Evaluation plan: a name in configs/evaluation, or a .yaml file.")
]
Target = Annotated[
    Targets | None,
    typer.Option(help="Engine that is to run the winner; what it would refuse is not measured."),
]
MaxCandidates = Annotated[
    int | None, typer.Option(min=0, help="Distinct programs to evaluate, references not counted.")
]
TimeBudget = Annotated[
    str | None,
    typer.Option(help="Working time of the whole run, references and finals included: 90s, 10m, 1.5h."),
]
MaxTokens = Annotated[
    int | None, typer.Option(min=0, help="Cap on tokens of proposers; works where no price is known.")
]
MaxEvaluations = Annotated[
    int | None, typer.Option(min=0, help="Candidates to evaluate, programs under other knobs counted each.")
]
GpuBudget = Annotated[
    str | None,
    typer.Option(help="GPU time that the run may hold before its finals: 30m, 8h. Two GPUs take two."),
]
Address = Annotated[str | None, typer.Option(help="Existing Ray cluster: auto or host:port.")]
Device = Annotated[Devices | None, typer.Option(help="Where engines run. auto: on GPUs where there are any.")]
Gpus = Annotated[int | None, typer.Option(min=1, help="GPUs to use; all by default.")]
TensorParallel = Annotated[int | None, typer.Option(min=1, help="GPUs that hold one engine together.")]
Engines = Annotated[
    int | None, typer.Option(min=1, help="Resident evaluation workers; one for each GPU by default.")
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KNOB=VALUE", help="Change a knob; may be repeated.")
]

"""The plug-in against stand-ins for SGLang: a moved interface has one message, and failures are kept."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vortex_core.errors import VortexError
from vortex_core.serving.sglang import contract, plugin


def _function(parameters: tuple[str, ...]) -> Callable[..., Any]:
    made: dict[str, Any] = {}
    exec(f"def f({', '.join(parameters)}): pass", made)  # the signature is what is checked
    return made["f"]


@pytest.fixture
def sglang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], types.ModuleType]]:
    """Modules that have all that is expected; returns a way to reach them."""
    modules: dict[str, types.ModuleType] = {}

    def module(name: str) -> types.ModuleType:
        if name not in modules:
            modules[name] = types.ModuleType(name)
            monkeypatch.setitem(sys.modules, name, modules[name])
            parent, _, last = name.rpartition(".")
            if parent:
                setattr(module(parent), last, modules[name])
        return modules[name]

    module("sglang").__version__ = "0.5.16"
    places = {**contract.PARAMETERS, **dict.fromkeys(contract.REGISTRATIONS, ("anything",))}
    for place, parameters in places.items():
        name, _, path = place.partition(":")
        *classes, function = path.split(".")
        holder: Any = module(name)
        for class_ in classes:
            if not hasattr(holder, class_):
                setattr(holder, class_, type(class_, (), {}))
            holder = getattr(holder, class_)
        setattr(holder, function, _function(parameters))
    info = module("sglang.srt.model_executor.forward_batch_info")
    info.ForwardBatch = type("ForwardBatch", (), {"__dataclass_fields__": dict.fromkeys(contract.FIELDS)})
    info.ForwardMode = type("ForwardMode", (), dict.fromkeys(contract.MODES))
    module("sglang.srt.layers.attention.attention_registry").ATTENTION_BACKENDS = {}
    module("sglang.srt.models.deepseek_common.utils").FORWARD_ABSORB_CORE_ATTENTION_BACKENDS = []
    module("sglang.srt.server_args").ServerArgs.__dataclass_fields__ = dict.fromkeys(contract.SETTINGS)
    return module


def test_the_interface_it_was_written_against_passes(sglang) -> None:
    assert list(contract.differences()) == []
    contract.check()


def test_every_move_is_named_in_one_error(sglang) -> None:
    base = sglang("sglang.srt.layers.attention.base_attn_backend").AttentionBackend
    base.forward_decode = _function(("self", "q", "k", "v", "layer"))
    del base.init_cuda_graph_state
    info = sglang("sglang.srt.model_executor.forward_batch_info")
    del info.ForwardBatch.__dataclass_fields__["extend_seq_lens_cpu"]
    sglang("sglang.srt.server_args").add_attention_backend_choices = _function(())
    del sglang("sglang.srt.server_args").ServerArgs.__dataclass_fields__["dcp_size"]
    sglang("sglang").__version__ = "0.9.0"
    with pytest.raises(VortexError) as caught:
        contract.check()
    text = str(caught.value)
    assert caught.value.code == "VE035"
    assert "SGLang 0.9.0" in text
    assert "forward_decode takes self, q, k, v, layer, not forward_batch, save_kv_cache" in text
    assert "init_cuda_graph_state is gone" in text
    assert "add_attention_backend_choices does not take one argument" in text
    assert "ForwardBatch has no field extend_seq_lens_cpu" in text
    assert "ServerArgs has no field dcp_size" in text


@pytest.mark.parametrize(
    ("flow", "code"),
    [("", "VE030"), ("no_such_flow", "VE030"), ("quest", "")],
    ids=["unset", "unknown", "good"],
)
def test_a_failure_is_kept_until_the_backend_is_asked_for(
    flow: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang swallows what a plug-in raises; its registry does not swallow what a backend raises."""
    monkeypatch.setenv("VORTEX_SERVING_FLOW", flow)
    hooked: list[str] = []
    monkeypatch.setattr(plugin, "_account_for_states", lambda settings, bundle: hooked.append(bundle.name))
    create = plugin._creator()
    if code:
        with pytest.raises(VortexError) as caught:
            create(object())
        assert caught.value.code == code
    assert hooked == ([] if code else ["quest"])


def test_the_entry_point_names_the_plugin(root) -> None:
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    target = project["entry-points"]["sglang.srt.plugins"]["vortex"]
    module, _, function = target.partition(":")
    assert module == plugin.__name__
    assert callable(getattr(plugin, function))

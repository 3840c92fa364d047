"""The plug-in against stand-ins for SGLang: a moved interface has one message, and failures are kept."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vortex_core.errors import VortexError
from vortex_core.serving.sglang import compat, contract, plugin

PACKAGE = "vortex_core.serving.sglang"


def _function(parameters: tuple[str, ...]) -> Callable[..., Any]:
    made: dict[str, Any] = {}
    exec(f"def f({', '.join(parameters)}): pass", made)  # the signature is what is checked
    return made["f"]


def _made_of_stand_ins(name: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module of the plug-in that imports SGLang, for this test alone."""
    for each in ("backend", "build"):
        monkeypatch.delitem(sys.modules, f"{PACKAGE}.{each}", raising=False)
    made = importlib.import_module(f"{PACKAGE}.{name}")
    for each in ("backend", "build"):
        sys.modules.pop(f"{PACKAGE}.{each}", None)
    return made


@pytest.fixture(params=["fields", "published"])
def shape(request: pytest.FixtureRequest) -> str:
    """Where SGLang keeps its settings: fields of `ServerArgs`, or published by name (0.5.18 and later)."""
    return str(request.param)


@pytest.fixture
def sglang(monkeypatch: pytest.MonkeyPatch, shape: str) -> Iterator[Callable[[str], types.ModuleType]]:
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
    newest, oldest = compat.DEFAULT_BACKEND
    places = {**contract.PARAMETERS, **dict.fromkeys(contract.REGISTRATIONS, ("anything",))}
    places[newest if shape == "published" else oldest] = ("args", *contract.MOVED[compat.DEFAULT_BACKEND])
    for place, parameters in places.items():
        name, _, path = place.partition(":")
        *classes, function = path.split(".")
        holder: Any = module(name)
        for class_ in classes:
            if not hasattr(holder, class_):
                setattr(holder, class_, type(class_, (), {}))
            holder = getattr(holder, class_)
        setattr(holder, function, _function(parameters))
    base = module("sglang.srt.layers.attention.base_attn_backend").AttentionBackend
    base.kv_index_translator = base.needs_cpu_seq_lens = None
    info = module("sglang.srt.model_executor.forward_batch_info")
    info.ForwardBatch = type("ForwardBatch", (), {"__dataclass_fields__": dict.fromkeys(contract.FIELDS)})
    info.ForwardMode = type("ForwardMode", (), dict.fromkeys(contract.MODES))
    module("sglang.srt.layers.attention.attention_registry").ATTENTION_BACKENDS = {}
    module("sglang.srt.models.deepseek_common.utils").FORWARD_ABSORB_CORE_ATTENTION_BACKENDS = []
    holder = module("sglang.srt.server_args")
    args = holder.ServerArgs = getattr(holder, "ServerArgs", type("ServerArgs", (), {}))
    if shape == "fields":
        args.__dataclass_fields__ = dict.fromkeys(contract.SETTINGS)
    else:
        inside = dict.fromkeys(contract.SETTINGS, "in effect")
        context = module("sglang.srt.runtime_context")
        context.RuntimeContext = type("RuntimeContext", (), {"config_leaf": lambda self, name: inside[name]})
        context.get_context = context.RuntimeContext
        module("sglang.srt.arg_groups.arg_utils").namespace_of = lambda args: inside
    return module


def test_the_interface_it_was_written_against_passes(sglang) -> None:
    assert list(contract.differences()) == []
    contract.check()


def test_a_setting_is_read_as_it_is_in_effect(sglang, shape: str) -> None:
    args = types.SimpleNamespace(tp_size="asked")
    assert compat.setting(args, "tp_size") == ("asked" if shape == "fields" else "in effect")
    assert set(compat.setting_names()) == set(contract.SETTINGS)


@pytest.mark.parametrize(
    ("prefill", "decode", "found"),
    [(None, None, ("vortex", "vortex")), ("fa3", None, ("fa3", "vortex")), (None, "fa3", ("vortex", "fa3"))],
)
def test_both_phases_have_the_backend_unless_one_is_named(
    monkeypatch: pytest.MonkeyPatch, prefill: str | None, decode: str | None, found: tuple[str, str]
) -> None:
    settings = {"attention_backend": "vortex", "prefill_attention_backend": prefill}
    settings |= {"decode_attention_backend": decode}
    monkeypatch.setattr(compat, "setting", lambda args, name: settings[name])
    assert compat.attention_backends(object()) == found


def test_the_default_backend_is_asked_where_it_lives(sglang, shape: str) -> None:
    def answer(args: Any, use_mla_backend: bool, model_config: Any) -> str:
        return f"{args} {use_mla_backend} {model_config}"

    if shape == "fields":
        sglang("sglang.srt.server_args").ServerArgs._get_default_attn_backend = answer
    else:
        sglang("sglang.srt.arg_groups.model_override_base").get_default_attn_backend = answer
    assert compat.default_backend("args", True, "model") == "args True model"


def test_what_the_base_class_answers_for_prefill_is_asked_of_the_prefill_backend(
    sglang, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang binds its index translator to the outer backend and asks that one for it; the inner one uses it."""
    sglang("sglang.srt.mem_cache.memory_pool").KVWriteLoc = object
    made = _made_of_stand_ins("backend", monkeypatch).VortexAttnBackend
    backend = object.__new__(made)
    backend.inner = types.SimpleNamespace(kv_index_translator="its own", workspace=3)
    assert (backend.kv_index_translator, backend.workspace) == ("its own", 3)
    backend.kv_index_translator = "bound"
    assert backend.inner.kv_index_translator == "bound"
    assert "data_type" not in vars(made)  # not in this SGLang


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"prefill_attention_backend": "fa3"}, "being only one of two attention backends"),
        ({"enable_lmcache": True}, "caches beyond the pool (enable_lmcache)"),
        ({"radix_cache_backend": "own"}, "caches beyond the pool (radix_cache_backend)"),
        ({"pp_size": 2}, "pipeline parallelism"),
        ({"SGLANG_ENABLE_METADATA_GLUE_GRAPH": True}, "graphs of a step's preparation"),
    ],
    ids=["served", "split", "lmcache", "registered", "pp", "glue"],
)
def test_a_server_that_would_serve_wrongly_is_refused(
    sglang, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], said: str
) -> None:
    pool = type("Pool", (), {"post_capture_active": False})
    memory = sglang("sglang.srt.mem_cache.memory_pool")
    memory.KVWriteLoc, memory.MHATokenToKVPool, memory.MLATokenToKVPool = object, pool, pool
    sglang("sglang.srt.configs.model_config").AttentionArch = object
    glue = types.SimpleNamespace(get=lambda: changed.get("SGLANG_ENABLE_METADATA_GLUE_GRAPH", False))
    environment = types.SimpleNamespace(SGLANG_ENABLE_METADATA_GLUE_GRAPH=glue)
    sglang("sglang.srt.environ").envs = environment
    build = _made_of_stand_ins("build", monkeypatch)
    settings = dict.fromkeys(contract.SETTINGS) | {
        "attention_backend": "vortex",
        "disaggregation_mode": "null",
    }
    settings |= {"pp_size": 1, "dcp_size": 1, **changed}
    monkeypatch.setattr(build, "setting", lambda args, name: settings[name])
    monkeypatch.setattr(compat, "setting", lambda args, name: settings[name])
    runner = types.SimpleNamespace(token_to_kv_pool=pool(), sliding_window_size=None)
    if not said:
        build._check_server(runner, object())
        return
    with pytest.raises(VortexError) as caught:
        build._check_server(runner, object())
    assert (caught.value.code, said in str(caught.value)) == ("VE033", True)


def test_every_move_is_named_in_one_error(sglang, shape: str) -> None:
    base = sglang("sglang.srt.layers.attention.base_attn_backend").AttentionBackend
    base.forward_decode = _function(("self", "q", "k", "v", "layer"))
    base.asks_the_prefill_backend = False
    del base.init_cuda_graph_state
    info = sglang("sglang.srt.model_executor.forward_batch_info")
    del info.ForwardBatch.__dataclass_fields__["extend_seq_lens_cpu"]
    arguments = sglang("sglang.srt.server_args")
    arguments.add_attention_backend_choices = _function(())
    if shape == "fields":
        del arguments.ServerArgs.__dataclass_fields__["dcp_size"]
        del arguments.ServerArgs._get_default_attn_backend
    else:
        del sglang("sglang.srt.arg_groups.arg_utils").namespace_of(None)["dcp_size"]
        del sglang("sglang.srt.arg_groups.model_override_base").get_default_attn_backend
    sglang("sglang").__version__ = "0.9.0"
    with pytest.raises(VortexError) as caught:
        contract.check()
    text = str(caught.value)
    assert caught.value.code == "VE035"
    assert "SGLang 0.9.0" in text
    assert "forward_decode takes self, q, k, v, layer, not forward_batch, save_kv_cache" in text
    assert "init_cuda_graph_state is gone" in text
    assert "AttentionBackend.asks_the_prefill_backend is new" in text
    assert "add_attention_backend_choices does not take one argument" in text
    assert "ForwardBatch has no field extend_seq_lens_cpu" in text
    assert "the server has no setting dcp_size" in text
    assert f"{' or '.join(compat.DEFAULT_BACKEND)} is gone" in text


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

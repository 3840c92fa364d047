"""Which variables processes that need no secret may see."""

from __future__ import annotations

import pytest

from search.executors.environment import is_secret, without_secrets


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPENAI_API_KEY", "x"), ("HF_TOKEN", "x"), ("MY_PASSWORD", "x"), ("DB_PASS", "x"), ("SENTRY_DSN", "x"),
        ("GITHUB_PAT", "x"), ("aws_secret_access_key", "x"), ("SESSION_COOKIE", "x"),
        ("DB_URL", "postgres://u:pw@h"), ("HTTP_PROXY", "http://me:pw@proxy:3128"),
        ("HOOK", "https://h/x?token=abcdef1"),
        ("A", "sk-abcdef123456"), ("A", "ghp_abcdefghij0123"), ("A", "hf_abcdefghij0123"),
        ("A", "AKIAABCDEFGHIJKLMNOP"),
        ("A", "eyJhbGciOiJI.eyJzdWIiOiIx.x"), ("A", "-----BEGIN RSA PRIVATE KEY-----"),
        ("A", "Server=h;Password=hunter22"),
        ("A", '{"token": "x"} Bearer abcdefghijk'),
    ],
)  # fmt: skip
def test_secrets_are_seen_by_name_and_by_value(name: str, value: str) -> None:
    assert is_secret(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PATH", "/usr/bin:/bin"), ("HOME", "/root"), ("PWD", "/root"), ("LANG", "C.UTF-8"),
        ("HTTP_PROXY", "http://proxy:3128"),
        ("HF_HOME", "/data/hf"), ("TOKENIZERS_PARALLELISM", "false"),
        ("CUDA_VISIBLE_DEVICES", "0,1"),
        ("VORTEX_CACHE", "/data/cache"), ("NCCL_SOCKET_IFNAME", "eth0"), ("OMP_NUM_THREADS", "2"),
        ("A", "task-oriented"),
    ],
)  # fmt: skip
def test_the_rest_stays(name: str, value: str) -> None:
    assert not is_secret(name, value)


def test_copies_of_a_secret_go_too() -> None:
    kept = without_secrets(
        {"X_KEY": "0123456789abcdef", "COPY": "0123456789abcdef", "IN": "-k 0123456789abcdef", "KEY_DIR": "/home/me",
         "TOOLS": "/home/me/bin", "PATH": "/home/me/bin", "N": "0"}
    )  # fmt: skip
    assert kept.keys() == {"TOOLS", "PATH", "N"}

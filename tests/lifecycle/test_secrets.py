"""No secret of an address remains in a text, in whatever form the text quotes the address."""

import random

import pytest
from secret_addresses import address, messages

from prefdag.lifecycle.secrets import without_secrets


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_no_secret_of_a_random_address_remains(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 addresses of this process, in every form."""
    rng = random.Random(seed)
    for _ in range(250):
        uri, parts = address(rng)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        for text in messages(uri):
            assert any(part in text for part in parts) or text != uri  # control: it was there
            left = without_secrets(text)
            assert not [part for part in parts if part in left], (uri, text, left)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://bob:se/cret@db.example/mlflow", "postgresql://db.example/mlflow"),
        ("postgresql://bob:s@c/r@t@db/mlflow", "postgresql://db/mlflow"),
        ("at http://user:secret@127.0.0.1:5000: refused", "at http://127.0.0.1:5000: refused"),
        ("https://gh_token@host/x", "https://host/x"),
        ("http://u:p@[::1]:5000/x", "http://[::1]:5000/x"),
        ("https://host/x?a=1&token=abc&b=2", "https://host/x?a=1&token=***&b=2"),
        ("https://host/x#access_token=abc", "https://host/x#access_token=***"),
        ("sqlite:////home/bob@home/mlflow.db", "sqlite:////home/bob@home/mlflow.db"),
        ("https://$USER:$TOKEN@host/x?$QUERY", "https://$USER:$TOKEN@host/x?$QUERY"),
        ("https://host/x?token=$TOKEN", "https://host/x?token=$TOKEN"),
        ("http://127.0.0.1:5000/path", "http://127.0.0.1:5000/path"),
        ("mail bob@example.com // a comment", "mail bob@example.com // a comment"),
        ("", ""),
    ],
)
def test_addresses_of_others_are_masked_too(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown


def test_secrets_of_the_environment_are_found_in_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tok/en-0123456789")
    monkeypatch.setenv("SOME_API_KEY", "short")  # too short to be searched for
    assert without_secrets("a tok/en-0123456789, tok%2fen-0123456789, short") == "a ***, ***, short"


def test_a_user_named_like_a_word_does_not_break_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://post:abcdefgh@db/x")
    assert without_secrets("postgresql://db/x: postage, abcdefgh") == "postgresql://db/x: postage, ***"

"""The section format_pairs for tests."""

from typing import Any

from prefdag.config.format_pairs import FormatPairs

SETTINGS: dict[str, Any] = {
    "template": "instruction",
    "template_options": {},
    "max_prompt_tokens": 300,
    "max_response_tokens": 20,
    "max_auto_tokens": 2048,
    "max_left_out": 0.2,
    "max_rendered": 0.1,
    "max_pairs": None,
    "val_fraction": 0.2,
    "test_fraction": 0.2,
    "seed": 0,
}


def format_settings(**changes: Any) -> FormatPairs:
    """`SETTINGS` with these changes."""
    return FormatPairs(**SETTINGS | changes)

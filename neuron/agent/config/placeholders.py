"""The placeholders of command templates, and filling them in. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = ["PLACEHOLDERS", "fill_in", "placeholders_in"]

PLACEHOLDERS = ("model_id", "source", "port", "host", "devices", "tensor_parallel", "quant", "context")

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")  # so that JSON in an argument is none


def placeholders_in(argument: str) -> list[str]:
    """The names in braces, known or not."""
    return _PLACEHOLDER.findall(argument)


def fill_in(template: Sequence[str], values: Mapping[str, str | None]) -> list[str]:
    """The arguments with their values.

    An argument whose placeholder has no value (None) is left out. So is the option before it, if it is written apart:
    `["--quantization", "{quant}"]` becomes nothing at all.

    Args:
        template: Arguments; every placeholder in them is a key of `values`.
        values: Text, or None for what is not given.
    """
    filled: list[str] = []
    option_at = -1  # where in `filled` the template's last argument is, if it may be an option that wants a value
    for argument in template:
        if any(values[name] is None for name in placeholders_in(argument)):
            if option_at == len(filled) - 1 >= 0 and not argument.startswith("-"):
                filled.pop()
            option_at = -1
            continue
        option_at = len(filled) if argument.startswith("-") and "=" not in argument else -1
        filled.append(_PLACEHOLDER.sub(lambda found: values[found[1]] or "", argument))
    return filled

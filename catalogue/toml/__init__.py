"""Reading TOML files that people write: every fault at once, each with its line, its key and a hint.

Used for `models.toml` and `cortex.toml`. Knows no key of any file: the callers describe their files as dataclasses.

- `parse`: bytes to a parsed document, or the one fault of a file that is not TOML.
- `positions`: the line of each key.
- `types`: the types of values that our files have, as annotations for pydantic, and checks across several keys.
- `validate`: a parsed document to a value of a dataclass, or all faults. Read this file first.
- `schema`: the JSON Schema of a file, for editors.
- `faults`: what a fault is and how it is shown.
"""

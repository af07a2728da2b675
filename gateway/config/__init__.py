"""`cortex.toml` and `CORTEX_` variables become frozen settings; nothing here is read again after the start.

Read `settings` first: every key, its type, default and description. `rules` has what single values must look like,
`load` puts everything together, `environment` lays variables over the file, `removed_keys` lists keys of earlier
releases, and `engine_traits` is what servers accept beyond plain chat completions. Reading of TOML files in general is
`catalogue.toml`; what `models.toml` may contain is `catalogue`.
"""

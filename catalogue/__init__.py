"""What can be served and under which names. Synchronous and pure: no I/O, no Trio; imports neither gateway nor neuron.

Read `models` first: the frozen types that everything else is about. `load` reads a `models.toml` (its aliases are in
`aliases`), `resolve` finds the model for a requested name, `placement` has the rules of where a model may go, `diff`
compares two catalogues, `warming` holds aliases back until their new models can serve, and `source` is how others get
the catalogue in force. `toml/` reads TOML files in general. Watching the file and editing it is `gateway.aliases`.
"""

"""Where the command line reads and changes `models.toml`: on this host, or over the network through a gateway.

Read `editable_file.py` first: it is what both can do. `local_file.py` uses the functions of `gateway.aliases.files`,
`remote_file.py` the admin API.

Does not belong here: what a command reports and how it follows a change (`gateway.cli.commands`).
"""

"""What the commands print: tables and lines made of the JSON that the gateway answers, or of values.

Belongs here: wording, columns, colours. Does not belong here: HTTP, files, exit codes; those are in
`gateway.cli.commands`. Read `drain_view.py` first, the shortest.
"""

"""`cortex alias`: its commands, the edits they make, and how they follow an edit until it is in force.

Read `alias.py` first, which has the commands; `rollout.py` has `cortex alias rollout`. `alias_edit.py` makes an edit
and reports what it changes, `follow_edit.py` waits for the gateway, `alias_states.py` tells how the aliases stand.

Does not belong here: where the file is (`gateway.cli.source`) and what is printed about it (`gateway.cli.views`).
"""

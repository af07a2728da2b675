"""How one gateway process replaces another without refusing a connection.

Belongs here: sockets that a service manager hands over (`socket_activation.py`), what systemd learns about the process
(`service_manager.py`), and how a new process takes the sockets of a running one (`takeover.py` in the new process,
`takeover_listener.py` in the running one, `takeover_messages.py` in both; `successor.py` starts the new process for
SIGUSR2). `state_writers.py` has the tasks that only one of the two may run.

Does not belong here: what draining means for requests (`gateway.server.serve`).

Read `takeover_messages.py` first.
"""

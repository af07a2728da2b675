"""The neuron's HTTP API: management for gateways and operators, and the forwarder in front of engines.

Here: routes, bodies, the token, metrics. Not here: decisions about models, which are `neuron.agent.supervision`'s. Read
`management.py` first, then `forwarder.py`.
"""

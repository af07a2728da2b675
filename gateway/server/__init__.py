"""The gateway as a process: parts built and wired, two ports, and the routes that are not inference.

Belongs here: the composition root (`gateway.py`), starting and draining (`serve.py`, `listen.py`, `main.py`), the
public routes (`public_app.py`, `public_routes.py`, `models_api.py`, `health/`), the admin routes (`admin_app.py`), keys
at both ports (`access/`), the file of the neurons (`neurons/`), captures (`capture/`), the console (`console/`),
restarts (`restart/`), and the OpenAPI documents of both ports (`openapi/`). Only this package of the gateway
imports Quart.

Does not belong here: the path of an inference request (`gateway.proxy`), and any rule about models, neurons or aliases;
a route calls the package that owns the rule.

Read `gateway.py` first.
"""

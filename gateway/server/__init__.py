"""The gateway as a process: parts built and wired, two ports, and the routes that are not inference.

Belongs here: the composition root (`gateway.py`), starting and draining (`serve.py`, `listen.py`, `main.py`), the
public routes (`public_app.py`, `public_routes.py`, `models_api.py`, `health.py`), the admin routes (`admin_app.py`),
the console (`console/`), and the OpenAPI documents of both ports. Quart is imported in this package only.

Does not belong here: the path of an inference request (`gateway.proxy`), and any rule about models, neurons or aliases;
a route calls the package that owns the rule.

Read `gateway.py` first.
"""

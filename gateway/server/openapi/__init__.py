"""`/openapi.json` of both ports: OpenAPI 3.1, built from the endpoint table and the types of the code.

A translated request is described by the type it is decoded into, an answer of the gateway by the type it is encoded
from. What is passed through is described only as far as the gateway reads it. A test compares the paths with the routes
that exist: a new public route needs a row in `public.py`, a new admin route one in `admin.py`.
"""

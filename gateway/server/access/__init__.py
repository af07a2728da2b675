"""Access at the ports: what a gateway needs to check keys, which key an admin request has, and the hosts it may name.

The checks themselves are `gateway/access`. Read `parts.py` first.
"""

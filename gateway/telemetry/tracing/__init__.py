"""Traces: one span tree per request, which follows the nesting of its nurseries.

Belongs here: trace contexts of clients, spans as plain values, their export. Read `span_tree.py` first.
Does not belong here: times. The spans are made from a request's record when it ends, so a request pays for none of this
while it runs.
"""

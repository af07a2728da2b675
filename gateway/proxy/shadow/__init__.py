"""Shadow requests: a candidate model answers some of an alias's requests again, and the answers are compared.

Here: when a shadow runs (`shadower`, read it first), what is kept of an answer (`transcript`), and the figures for the
operator (`summary`). Not here: which model an alias uses, and every effect on a client's own request.
"""

"""`cortex bench`: how good and how fast the tiers behind a gateway are, as a report that a reader understands alone.

    questions, code_check   what is asked, and how an answer is checked
    chat_client             one request, timed
    run                     which requests are sent, in which order and how many at a time
    figures                 what the samples say: correctness, times, speeds, costs
    progress                how far a run is
    demo_fleet              a gateway with simulated neurons to measure
    html_report, svg        the report as one HTML file; text_report on a terminal

Read `run.py` first. Does not belong here: the options of the command (`gateway.cli.commands.bench`), and what the
gateway itself costs, which `scripts/perf.py` measures.
"""

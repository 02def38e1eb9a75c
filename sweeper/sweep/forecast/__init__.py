"""How long a sweep will take: measured speed, and many simulated sweeps with the study's own scheduler, sampler and pruner.

    probe.py      some configurations in the real engine, for a minute       ──┐
    observed.py   what the trials of this study have taken so far            ──┴─> speed.py   Speed: seconds for a piece of work
    outlook.py    configurations to come and their learning curves (the prior, stated there)
    simulate.py   one sweep on a simulated clock
    forecast.py   many of them: medians and 80 % intervals
    estimator.py  time left while a sweep runs

Does not know torch (but for probe.py), databases, or how a forecast is shown.
"""

"""What to try and what to stop: the gateway (alone writes to Optuna), samplers, pruners, rungs, the ledger and its readers.

    plan -> gateway -> writes -> ledger (our tables) and store (Optuna's)
                └────> samplers, pruners, collapse, rungs          read: frozen views, for everybody else

Does not know how a trial trains, or where. Importing this package costs nothing; its modules import what they need.
"""

"""Churn and faults at random for as long as one likes; at the end nothing may be lost or left.

``make soak MINUTES=10 SEED=1``.  ``plan`` says what is done and when, ``faults`` is the table of
what goes wrong, ``kinds`` are the lives that containers have meanwhile, ``daemon`` those that
they have under a real containerd, ``ledger`` counts, ``world`` is where it happens, ``account``
says what was lost or left.
"""

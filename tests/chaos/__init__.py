"""A mixed load on real processes that are killed at random.

    python -m tests.chaos --kills 1000

Every vector of the fake engine follows from its text, so a wrong, a missing and a doubled one is seen.
"""

"""schemathesis makes requests up from the API's own description, good and bad ones, and compares every answer with it.

make fuzz SECONDS=600
"""

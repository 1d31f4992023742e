"""Start the whole service on one machine: a Redis or Valkey server, the API and a worker.

Used by `make run`, `make demo` and the tests.
"""

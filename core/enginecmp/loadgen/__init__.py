"""The load generator: a process of its own that sends requests to a worker when they are due.

`schedule` draws when, `dispatcher` is what the process does, `client` starts it from the host. The memory that host,
generator and worker share is `enginecmp.wire.request_table`.
"""

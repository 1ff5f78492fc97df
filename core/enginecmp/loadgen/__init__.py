"""The load generator: a process of its own that sends requests to a worker when they are due.

`schedule` draws when, `board` is the memory that host, generator and worker share, `dispatcher` is what the process
does, `client` starts it from the host.
"""

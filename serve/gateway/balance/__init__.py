"""Which engine answers a request, and when: choice, slots with fairness, ejection and retries.

``pool`` puts the parts together and is what the data plane calls. ``hashing`` orders the engines for a
conversation, ``health`` says which may be asked, ``slots`` decides when an engine takes a request, ``residency``
what an engine holds by its last use, ``retry`` whether a failed attempt may be made again, ``side`` which version
of an alias a conversation gets, ``cost`` how many tokens a request may take.

Everything here lives in one event loop and in memory. Time comes from a clock that is handed in
(:func:`time.monotonic` by default); nothing touches the network but the probe that the pool is given. Several
gateways before one engine do not know of each other: give each its share of the slots.
"""

"""The HTTP front: an OpenAI-shaped data plane and a control plane in one ASGI callable.

A request passes ``protocol`` (its head), ``app`` and ``endpoints`` (by path), ``auth`` (who asks), ``limits`` with
``counters`` (what is left to them), ``asgi`` (its body), ``routes``
(what its model means), ``validate`` with ``bodies`` (its fields), ``policy`` with ``sampling`` and ``presets``
(what its alias makes of them), ``salt`` (whose it is), ``proxy`` (to the engine) and ``relay`` with ``stream``
(back to the client); ``metrics`` counts it, ``books`` with ``meter`` and ``ledger`` remember what it used, and
``failures`` writes whatever went wrong in OpenAI's shape. ``observe`` stands around all of it: a ``call`` is what the
log line, and with ``tracing`` the ``spans``, tell. ``rules`` are what the operator allows. Beside that,
``source`` and ``build`` keep the routes fresh, ``models`` lists the names, ``control`` holds what is not on
the hot path, and ``server`` listens. ``courier`` takes a request to an engine, which ``balance`` chooses and holds
requests back for until it can compute their adapter.
"""

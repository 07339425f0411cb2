"""The HTTP front: an OpenAI-shaped data plane and a control plane in one ASGI callable.

A request passes ``protocol`` (its head), ``app`` and ``endpoints`` (by path), ``asgi`` (its body), ``routes``
(what its model means), ``validate`` with ``bodies`` (its fields), ``policy`` with ``sampling`` and ``presets``
(what its alias makes of them), ``salt`` (whose it is), ``proxy`` (to the engine) and ``relay`` with ``stream``
(back to the client); ``metrics`` counts it and ``failures`` writes whatever went wrong in OpenAI's shape.
``observe`` stands around all of it: a ``call`` is what the log line, and with ``tracing`` the ``spans``, tell.
``rules`` are what the operator allows. Beside that,
``source`` and ``build`` keep the routes fresh, ``models`` lists the names, ``control`` holds what is not on
the hot path, and ``server`` listens. ``balance`` chooses among engines and holds requests back until one can
compute their adapter; it is not on the path yet.
"""

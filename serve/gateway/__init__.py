"""The HTTP front: an OpenAI-shaped data plane and a control plane in one ASGI callable.

A request passes ``app`` (by path), ``asgi`` (its body), ``validate`` and ``sampling`` (its fields),
``routes`` (what its model means), ``proxy`` (to the engine) and ``relay`` with ``stream`` (back to the
client); ``metrics`` counts it and ``failures`` writes whatever went wrong in OpenAI's shape. Beside that,
``source`` and ``build`` keep the routes fresh, ``models`` lists the names, ``control`` holds what is not on
the hot path, and ``server`` listens. ``balance`` chooses among engines and holds requests back until one can
compute their adapter; it is not on the path yet.
"""

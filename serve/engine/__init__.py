"""The engine: vLLM as a child or a remote process, and the loop that keeps its adapters as they should be.

``spec`` says how it is started, ``process`` owns the child, ``client`` speaks to it, ``probe`` finds adapters
that have no effect, ``recognition`` those that answer as others, ``reconcile`` moves the engine towards what the
registry wants, ``supervisor`` ties them together. ``fake`` is an engine without a model, with faults on request, for
tests.
"""

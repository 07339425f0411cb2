"""Training methods; each module has ``train(run, job, emit, interruption)``. Importing one imports torch."""

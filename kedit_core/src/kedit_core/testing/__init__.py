"""Tools for testing methods and plugins: the conformance kit, and tiny random models of every family.

Nothing is imported here; ask for :mod:`kedit_core.testing.tiny` and its neighbours by name.
"""

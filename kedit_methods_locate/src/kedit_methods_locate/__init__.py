"""Locate-then-edit methods: facts written into MLP down-projections.

Importable by other methods: ``keys`` (subject tokens and keys), ``templates`` (contexts), ``value`` (the value search,
many requests at once), ``update`` (rank-one formulas), ``stats`` (second-moment statistics of keys). This file imports
nothing, so that describing a method costs nothing.
"""

"""Commands of this distribution. Imports no torch."""

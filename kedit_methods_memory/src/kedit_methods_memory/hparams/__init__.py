"""Settings of the methods. Imports no torch."""

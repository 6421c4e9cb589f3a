"""Settings of this family's methods; imports no torch."""

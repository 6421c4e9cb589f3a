"""FactWorld for kedit."""

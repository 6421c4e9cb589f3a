"""Editors that learn to edit: KE, MEND and MALMEN."""

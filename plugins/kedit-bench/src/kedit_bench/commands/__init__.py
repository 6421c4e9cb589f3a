"""Commands of kedit-bench."""

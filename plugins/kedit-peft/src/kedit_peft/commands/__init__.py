"""Commands of this plugin. Importing them imports no torch."""

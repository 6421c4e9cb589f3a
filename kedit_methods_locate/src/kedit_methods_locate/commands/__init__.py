"""Commands of this distribution, one module each; none imports torch before it is called."""

"""The meta-learning family of knowledge-editing methods; nothing is registered yet."""

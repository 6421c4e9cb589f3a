"""The memory-based family of knowledge-editing methods; nothing is registered yet."""

"""Stacks as files: a base and the patches to be on it, in order, with the digest of the weights that they make."""

from kedit_core.stacks.digest import folder_digest, touched
from kedit_core.stacks.file import StackedPatch, StackFile, is_stack_file

__all__ = ["StackFile", "StackedPatch", "folder_digest", "is_stack_file", "touched"]

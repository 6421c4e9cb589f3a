"""Model folders on disk: read one parameter at a time, patches put on and taken off, no model loaded."""

from kedit_core.folders.base import FolderBase, TensorCheck
from kedit_core.folders.disk import FolderChange, apply_to_folder, revert_folder

__all__ = ["FolderBase", "FolderChange", "TensorCheck", "apply_to_folder", "revert_folder"]

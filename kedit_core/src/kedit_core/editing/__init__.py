"""The Editor and what an edit is made of: context, scenarios, result."""

from kedit_core.editing.cache import cache_folder
from kedit_core.editing.context import EditContext, EditWarning
from kedit_core.editing.editor import Editor
from kedit_core.editing.result import EditResult
from kedit_core.editing.trainable import Masters, trainable

__all__ = ["EditContext", "EditResult", "EditWarning", "Editor", "Masters", "cache_folder", "trainable"]

"""Settings files of EasyEdit, converted for kedit (docs/from-easyedit.md). Imports no torch."""

from kedit_easyedit.convert import Conversion, convert, convert_file
from kedit_easyedit.rules import Told

__all__ = ["Conversion", "Told", "convert", "convert_file"]

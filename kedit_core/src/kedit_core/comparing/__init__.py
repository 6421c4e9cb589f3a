"""What patches and checkpoints change, held against one another.

``compare`` (how much, and how alike), ``conflicts`` (where patches meet), ``diff_folders`` (a patch from two
checkpoints) and ``audit_folders`` (what was changed in a checkpoint).
"""

from kedit_core.comparing.audit import Audit, TensorAudit
from kedit_core.comparing.auditing import audit_folders
from kedit_core.comparing.comparison import Comparison
from kedit_core.comparing.conflicting import conflicts
from kedit_core.comparing.conflicts_report import ConflictReport
from kedit_core.comparing.diff import diff_folders
from kedit_core.comparing.difference import Difference, PlaceDifference
from kedit_core.comparing.overlaps import compare

__all__ = [
    "Audit",
    "Comparison",
    "ConflictReport",
    "Difference",
    "PlaceDifference",
    "TensorAudit",
    "audit_folders",
    "compare",
    "conflicts",
    "diff_folders",
]

"""Where parameters' values live: in memory, offloaded, spread over processes, or packed.

Everything that has to read a weight, or to put one in, asks here; see docs/weights.md.
"""

from kedit_core.models.storage.base import Held, Packed, Plain, Storage
from kedit_core.models.storage.finding import storage_of
from kedit_core.models.storage.marks import Fingerprint, version_of
from kedit_core.models.storage.names import first_names, named_tensors, names_by_parameter
from kedit_core.models.storage.offloaded import Offloaded, is_dispatched
from kedit_core.models.storage.reading import device_of, mark_of, matrix_of, repacked, stops_gradients, value_of
from kedit_core.models.storage.sharded import Sharded, meshes, reshard

__all__ = [
    "Fingerprint",
    "Held",
    "Offloaded",
    "Packed",
    "Plain",
    "Sharded",
    "Storage",
    "device_of",
    "first_names",
    "is_dispatched",
    "mark_of",
    "matrix_of",
    "meshes",
    "named_tensors",
    "names_by_parameter",
    "repacked",
    "reshard",
    "stops_gradients",
    "storage_of",
    "value_of",
    "version_of",
]

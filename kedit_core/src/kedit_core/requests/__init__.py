"""Edit requests and their probes, and the files they come in (docs/requests.md)."""

from kedit_core.requests._checks import check_requests, request_faults
from kedit_core.requests._files import dump_requests, load_requests, parse_requests
from kedit_core.requests._strict import request_from_dict, request_to_dict
from kedit_core.requests._subjects import find_subject, subject_span
from kedit_core.requests._types import KINDS, EditRequest, Probe, shortened

__all__ = [
    "KINDS",
    "EditRequest",
    "Probe",
    "check_requests",
    "dump_requests",
    "find_subject",
    "load_requests",
    "parse_requests",
    "request_faults",
    "request_from_dict",
    "request_to_dict",
    "shortened",
    "subject_span",
]

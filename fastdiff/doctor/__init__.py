"""Known traps in the configs of a pipeline's folder, named with what would do."""

from __future__ import annotations

from fastdiff.doctor.folder import Folder, Part, read
from fastdiff.doctor.networks import NETWORKS
from fastdiff.doctor.schedulers import SCHEDULERS
from fastdiff.doctor.students import STUDENTS
from fastdiff.doctor.trap import SEVERITIES, Finding, Found, Trap

TRAPS: tuple[Trap, ...] = (*STUDENTS, *SCHEDULERS, *NETWORKS)


def examine(folder: Folder) -> tuple[Finding, ...]:
    """Every trap that the folder holds, the worst first."""
    found = [
        Finding(
            trap.name,
            place.severity or trap.severity,
            place.file,
            place.field,
            place.has,
            trap.what,
            place.would_do or trap.would_do,
            trap.source,
        )
        for trap in TRAPS
        for place in trap.find(folder)
    ]
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


__all__ = ["SEVERITIES", "TRAPS", "Finding", "Folder", "Found", "Part", "Trap", "examine", "read"]

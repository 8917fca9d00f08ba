"""What is there on this machine, whether it works, and what to do about what does not."""

from collections.abc import Callable, Iterable
from functools import partial

from agiledpo.doctor.finding import Examination, Finding, guarded
from agiledpo.doctor.hardware import check_devices, check_disk, check_memory, check_threads
from agiledpo.doctor.models import check_embedded_model, check_hub
from agiledpo.doctor.self_test import check_training
from agiledpo.doctor.software import check_compilers, check_libraries, check_python
from agiledpo.doctor.terminal import check_terminal

__all__ = ["Examination", "Finding", "examine"]


def examine(*, network: bool = False) -> Examination:
    """Look at this machine and its software; nothing is changed, and nothing downloaded.

    Args:
        network: Also try to reach the Hugging Face Hub.
    """
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("software", check_python),
        ("software", check_libraries),
        ("devices", check_devices),
        ("devices", check_threads),
        ("storage", check_memory),
        ("storage", check_disk),
        ("models", check_embedded_model),
        ("models", partial(check_hub, network=network)),
        ("extras", check_compilers),
        ("terminal", check_terminal),
        ("training", check_training),
    ]
    found = [finding for area, check in checks for finding in guarded(area, check)]
    areas = list(dict.fromkeys(area for area, _ in checks))
    return Examination(tuple(sorted(found, key=lambda finding: areas.index(finding.area))))

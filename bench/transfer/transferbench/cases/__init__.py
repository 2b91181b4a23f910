"""All cases, by name."""

from ..case import Case
from . import at_once, daemons, delay, files, memory, share, small, together

CASES: dict[str, Case] = {case.name: case for case in (*files.CASES, *at_once.CASES, *delay.CASES, *small.CASES, *share.CASES, *daemons.CASES, *memory.CASES, *together.CASES)}

"""All cases, by name."""

from ..case import Case
from . import daemons, delay, files, memory, share, small, together

CASES: dict[str, Case] = {case.name: case for case in (*files.CASES, *delay.CASES, *small.CASES, *share.CASES, *daemons.CASES, *memory.CASES, *together.CASES)}

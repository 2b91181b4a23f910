"""All cases, by name."""

from ..case import Case
from . import delay, files, small

CASES: dict[str, Case] = {case.name: case for case in (*files.CASES, *delay.CASES, *small.CASES)}

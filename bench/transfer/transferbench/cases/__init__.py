"""All cases, by name."""

from ..case import Case
from . import files, small

CASES: dict[str, Case] = {case.name: case for case in (*files.CASES, *small.CASES)}

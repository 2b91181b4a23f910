"""Measures transfers between programs on one machine, over its loopback: the processors are the
limit.

`case` defines a case, `cases` contains them all, `transfer` does one transfer with one of the
`systems`, and `report` and `plot` show the results.
"""

import sys
from pathlib import Path

# `common` is in the parent folder.
sys.path.append(str(Path(__file__).resolve().parents[2]))

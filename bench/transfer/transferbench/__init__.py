"""What a machine's processors make of a transfer: no link between the programs but the machine's own loopback.

`case` says what a case is, `cases` has them all, `transfer` does one transfer with one of the `systems`, `report` and `plot` show what came out.
"""

import sys
from pathlib import Path

# `common` stands beside this benchmark.
sys.path.append(str(Path(__file__).resolve().parents[2]))

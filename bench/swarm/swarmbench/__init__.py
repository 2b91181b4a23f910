"""Runs a swarm over shaped links inside one machine, for any system that distributes a file from
seeds to many peers.

`network` makes the links, `scenario` describes the runs, `systems` starts each program, `trial`
does one run, and `report` and `plot` show the results. Only `network` and `trial` need root.
"""

import sys
from pathlib import Path

# `common` is in the parent folder.
sys.path.append(str(Path(__file__).resolve().parents[2]))

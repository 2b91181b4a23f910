"""A swarm on shaped links inside one machine, for any system that moves one file from a seed to many peers.

`network` makes the links, `scenario` says what happens, `systems` knows how each program is run, `trial` does one run of
one of them, `report` and `plot` show what came out. Only `network` and `trial` need root.
"""

import sys
from pathlib import Path

# `common` stands beside this benchmark.
sys.path.append(str(Path(__file__).resolve().parents[2]))

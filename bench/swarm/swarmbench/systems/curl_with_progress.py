"""Waits for a line of input, runs curl, and prints how much has arrived: `curl_with_progress.py
CERTIFICATE URL FILE`."""

import subprocess
import sys
import time
from pathlib import Path

certificate, url, target = sys.argv[1:]
sys.stdin.readline()
curl = subprocess.Popen(["curl", "-sf", "--cacert", certificate, "-o", target, url], stdin=subprocess.DEVNULL)
while curl.poll() is None:
    time.sleep(0.2)
    if Path(target).exists():
        print("progress", Path(target).stat().st_size, flush=True)
if curl.returncode:
    print("failed", curl.returncode, flush=True)
else:
    print("done", Path(target).stat().st_size, flush=True)

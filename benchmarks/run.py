"""`make bench`: every comparison, one after the other."""

import subprocess
import sys
from pathlib import Path

here = Path(__file__).parent
for script in ("compare.py", "load.py"):
    subprocess.run([sys.executable, str(here / script)], check=True)

"""``python -I -m pyshim.bootstrap …``: the way without a zygote."""

from __future__ import annotations

import sys

from pyshim.bootstrap import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The command `python -m lgqlib.study`; a file of its own, so that workers do not load the rest."""

import sys

from lgqlib.study import main

if __name__ == "__main__":
    sys.exit(main())

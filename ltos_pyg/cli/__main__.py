"""``python -m ltos_pyg.cli`` is ``ltos``."""

import sys

from ltos_pyg.cli import main

if __name__ == '__main__':
    sys.exit(main())

"""``python -m ltos_pyg`` is ``ltos``; so is ``torchrun … -m ltos_pyg``."""

import sys

from ltos_pyg.cli import main

if __name__ == '__main__':
    sys.exit(main())

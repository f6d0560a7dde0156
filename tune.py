"""Run a hyperparameter study: ``python tune.py`` alone runs the default one, ``python tune.py --help`` tells more."""

import sys

from ammpl.cli import main

if __name__ == "__main__":
    sys.exit(main())

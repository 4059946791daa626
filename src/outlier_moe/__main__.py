"""`python -m outlier_moe`: the command, where it is not on the path."""

import sys

from outlier_moe.cli import main

sys.exit(main())

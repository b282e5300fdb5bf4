"""`python -m codit.cli`."""

import sys

from codit.cli import main

sys.exit(main())

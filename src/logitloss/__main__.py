"""`python -m logitloss` is the command line."""

import sys

from logitloss._command_line.main import main

if __name__ == "__main__":
    sys.exit(main())

import sys

from si_nb.cli import main

sys.exit(main())

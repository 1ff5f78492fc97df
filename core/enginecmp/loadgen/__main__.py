"""`python -m enginecmp.loadgen TABLE_FD TO_WORKER_FD FROM_WORKER_FD`, started by `enginecmp.loadgen.client`."""

import sys

from enginecmp.loadgen.dispatcher import main

sys.exit(main(sys.argv[1:]))

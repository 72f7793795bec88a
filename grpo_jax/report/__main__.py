"""Makes the report of one run with the lowest priority: what training starts beside itself."""

import os
import sys

from grpo_jax.report.page import write_report

if __name__ == "__main__":
    os.nice(19)
    write_report(sys.argv[1])

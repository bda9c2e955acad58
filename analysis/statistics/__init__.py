"""Effects, intervals, tests, site rankings, and the verdict."""

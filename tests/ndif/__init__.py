"""Remote runs against the real ndif server, started here and reached by nobody else; `make test-ndif` runs them."""

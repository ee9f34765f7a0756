"""Continuous batching: requests (`request`) ask for tokens (`wanted`, `controls`), share pages (`pages`) and rows
(`scheduler`), and a few compiled programs (`programs`, `sampler`) make one token for each row at every step (`engine`).
Its counts are `stats` and `times`."""

"""Storage: where the files of a data directory lie, and what becomes of them."""

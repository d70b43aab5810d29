"""Many adapters on one model: the bank on disk, those in memory, rows that have one each."""

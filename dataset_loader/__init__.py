"""From files to a memory-mapped store, a split and batches."""

"""Low-rank adapters in the files of the library `peft`, which is not needed for it."""

"""Records that travel: packed with digests, read with suspicion, laid beside what is there. No torch."""

"""The embedded faces: rendered from a seed, exactly labelled, nothing downloaded."""

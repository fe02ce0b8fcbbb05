"""The stages of a study: each computes and writes its records."""

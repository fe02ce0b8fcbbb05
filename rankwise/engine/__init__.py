"""Tokens in; log-likelihoods, texts, losses and trained adapters out."""

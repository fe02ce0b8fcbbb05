"""Statistics of arrays; no records here."""

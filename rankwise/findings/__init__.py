"""From records to numbers, verdicts and sentences; no torch.

Whatever pairs models here raises ``RecordError`` where they were scored on different items, or a
score is missing.
"""

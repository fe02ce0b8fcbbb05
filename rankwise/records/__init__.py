"""What is written down and read back: the study file, every record, the study folder."""

"""The stages of a study: a kind of stage is one file."""

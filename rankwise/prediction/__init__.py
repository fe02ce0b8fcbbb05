"""The best rank before training: a collection of finished studies, and predictors judged on it."""

"""Searches: which trainings a study does next, decided on validation items.

    policy ─Decision: train these, so far─▶ planning.chosen ─StudyPlan─▶ run ─scores─▶ searching
       ▲                                                                                  │
       └───────────────────────── Known: what each showed, item by item ──────────────────┘

A ``Progress`` is a training as far as it has come: a share of its steps. The planner makes a model
of it, a checkpoint with the settings of its training (``PlannedRun.of``), and the study trains and
scores it like any other. A policy that is given the same scores makes the same decision, so a
search needs no saved state: ``search.json`` is for readers, and only the growths in it are read
back. A training that waits for its next rung leaves its state in ``training.pt``.
"""

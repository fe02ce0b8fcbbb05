"""Can the best rank be known before training? The evidence of docs/studies/prediction.md.

``train`` runs the studies, ``collect`` keeps figures and outcomes of their folders in ``studies/``,
and ``python -m benchmarks.prediction`` judges predictors on them, leaving one task out.
"""
